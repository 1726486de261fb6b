"""Trusted execution: AMD SEV-SNP evidence, checked.

``report`` reads an attestation report, ``certificates`` and ``chain`` decide whether AMD vouches for the key that
signed it, ``policy`` says what a relying party demands of it, and ``verify`` gives the verdict. Nothing
here imports torch: ``privbench attest`` verifies a report on any machine, offline.
"""
