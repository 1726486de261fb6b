"""What tells evidence of the software platform apart from AMD's. A verifier needs no more than this of it."""

from cryptography import x509

from privbench.defenses.tee.report import Report

LABEL = "SOFTWARE TEE - NOT AMD"
MARK = b"SOFTWARE"
"""Chip and family ids of the software platform start with it."""

MARKER = x509.ObjectIdentifier("2.25.212952743425891067928724171922495485226")
"""Critical extension of each of its certificates, so that every other verifier refuses them. The arc is a UUID's."""


def marked(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that it is the software platform's: by its names and by the critical extension."""
    named = LABEL in certificate.subject.rfc4514_string() and LABEL in certificate.issuer.rfc4514_string()
    return named and any(e.oid == MARKER and e.critical for e in certificate.extensions)


def ids(report: Report) -> list[bool]:
    """Whether the chip's and the family's id say so."""
    return [report.chip_id.startswith(MARK), report.family_id.startswith(MARK)]
