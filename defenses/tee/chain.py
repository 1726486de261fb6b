"""From a leaf certificate to AMD's root key: issuers, signatures, validity, and the pin.

The root is trusted by the SHA-256 of its public key alone. The same three pins stand in independent public verifiers.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.report import Report
from privbench.defenses.tee.software import LABEL, MARKER

PINS = {
    "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9": "Milan",
    "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831": "Genoa",
    "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08": "Turin",
}
LEAVES = {"SEV-VCEK": "VCEK", "SEV-VLEK": "VLEK", f"{LABEL} VCEK": "VCEK"}
MOST_CHAINS = 32
_PROCESSED = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, MARKER}
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)


@dataclass(frozen=True)
class Chain:
    """A leaf and what was found above it; None where nothing fits. ``signed``: the leaf's key signed the report."""

    leaf: Certificate
    intermediate: Certificate | None
    root: Certificate | None
    signed: bool = False

    @property
    def members(self) -> list[Certificate]:
        return [c for c in (self.leaf, self.intermediate, self.root) if c is not None]


def candidates(pool: Iterable[Certificate], report: Report) -> list[Chain]:
    """The chains for ``report`` among certificates in any order, at most :data:`MOST_CHAINS`; of leaves that signed it.

    There may be several: a chip's key for one TCB version stays the same however often its certificate is issued, and
    what lies in a folder may have expired or be forged. Each is judged by itself; a chain that holds is enough.
    """
    pool = list(pool)
    leaves = [c for c in pool if c.name in LEAVES]
    fitting = [c for c in leaves if LEAVES[c.name] == report.signing_key] or leaves
    signing = [c for c in fitting if signs(c, report)]
    found = (
        Chain(leaf, middle, root, bool(signing))
        for leaf in signing or fitting[:1]
        for middle in _issuers(leaf, pool)
        for root in (_issuers(middle, pool) if middle else [None])
    )
    return list(itertools.islice(found, MOST_CHAINS))


def signs(leaf: Certificate, report: Report) -> bool:
    """Whether ``leaf``'s key, on P-384, made the report's signature over bytes 0x000 to 0x29F."""
    key = leaf.x509.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False
    r, s = report.signature
    try:
        key.verify(utils.encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def key_digest(certificate: Certificate) -> str:
    """SHA-256 of the SubjectPublicKeyInfo, in hexadecimal: what a pin is."""
    spki = certificate.x509.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def issuers(chain: Chain) -> str | None:
    """Why the names, roles and extensions of a chain don't fit together; None when they do."""
    if chain.intermediate is None or chain.root is None:
        missing = "ARK" if chain.intermediate else "ASK or ASVK"
        return f"no certificate of the issuer ({missing}) among those given"
    if chain.root.x509.subject != chain.root.x509.issuer:
        return f"the root, {chain.root.name!r}, isn't self-issued"
    if chain.intermediate.x509.subject == chain.root.x509.subject:
        return f"the leaf is issued by the root, {chain.root.name!r}, itself"
    if LEAVES[chain.leaf.name] == "VLEK" and not chain.intermediate.name.startswith("SEV-VLEK"):
        return f"a VLEK is issued by an ASVK, not by {chain.intermediate.name!r}"
    if LEAVES[chain.leaf.name] == "VCEK" and chain.intermediate.name.startswith("SEV-VLEK"):
        return f"a VCEK is issued by an ASK, not by {chain.intermediate.name!r}"
    for depth, certificate in enumerate((chain.intermediate, chain.root)):
        if fault := _authority(certificate, depth):
            return f"{certificate.name!r}: {fault}"
    for certificate in chain.members:
        for extension in certificate.x509.extensions:
            if extension.critical and extension.oid not in _PROCESSED:
                return f"{certificate.name!r}: unknown critical extension {extension.oid.dotted_string}"
    return None


def signatures(chain: Chain) -> str | None:
    """Why a signature of the chain doesn't hold; None when all three do."""
    if chain.intermediate is None or chain.root is None:
        return "the chain is incomplete"
    for below, above in ((chain.leaf, chain.intermediate), (chain.intermediate, chain.root), (chain.root, chain.root)):
        if not _signed_by(below.der, below, above):
            return f"{below.name!r} isn't signed by {above.name!r} (RSA-4096, RSASSA-PSS, SHA-384, salt 48)"
    return None


def validity(chain: Chain, at: datetime) -> str | None:
    """Which certificate is not valid at ``at``; None when all are."""
    for certificate in chain.members:
        start, end = certificate.x509.not_valid_before_utc, certificate.x509.not_valid_after_utc
        if not start <= at <= end:
            return f"{certificate.name!r} is valid from {start:%Y-%m-%d} to {end:%Y-%m-%d}, not at {at.isoformat()}"
    return None


def verified(
    issuer: Certificate,
    signature: bytes,
    body: bytes,
    algorithm: x509.ObjectIdentifier,
    digest: hashes.HashAlgorithm | None,
) -> bool:
    """Whether ``issuer``'s key, RSA-4096, made ``signature`` over ``body`` as AMD's do."""
    key = issuer.x509.public_key()
    if algorithm != SignatureAlgorithmOID.RSASSA_PSS or not isinstance(digest, hashes.SHA384):
        return False
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
        return False
    try:
        key.verify(signature, body, _PSS, hashes.SHA384())
    except InvalidSignature:
        return False
    return True


def _issuers(certificate: Certificate, pool: Sequence[Certificate]) -> Sequence[Certificate | None]:
    """Those that signed it; else one by name alone; else None: never empty."""
    named = [c for c in pool if c.x509.subject == certificate.x509.issuer and c.name not in LEAVES]
    return [c for c in named if _signed_by(certificate.der, certificate, c)] or named[:1] or [None]


def _authority(certificate: Certificate, depth: int) -> str | None:
    key = certificate.x509.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
        return "its key isn't RSA-4096"
    held = {e.oid: e.value for e in certificate.x509.extensions}
    constraints, usage = held.get(ExtensionOID.BASIC_CONSTRAINTS), held.get(ExtensionOID.KEY_USAGE)
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        return "not a certificate authority"
    if constraints.path_length is not None and constraints.path_length < depth:
        return f"its path length is {constraints.path_length}"
    if isinstance(usage, x509.KeyUsage) and not usage.key_cert_sign:
        return "its key may not sign certificates"
    return None


@lru_cache(maxsize=1024)
def _signed_by(_: bytes, below: Certificate, above: Certificate) -> bool:
    c = below.x509
    return verified(above, c.signature, below.signed, c.signature_algorithm_oid, c.signature_hash_algorithm)
