"""From a leaf certificate to AMD's root key: issuers, signatures, validity, revocation, and the pin.

The root is trusted by the SHA-256 of its public key alone. The same three pins stand in independent public verifiers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID

from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.report import Malformed, Report

PINS = {
    "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9": "Milan",
    "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831": "Genoa",
    "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08": "Turin",
}
LEAVES = {"SEV-VCEK": "VCEK", "SEV-VLEK": "VLEK"}
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)


@dataclass(frozen=True)
class Chain:
    """A leaf and what was found above it; None where nothing fits."""

    leaf: Certificate
    intermediate: Certificate | None
    root: Certificate | None

    @property
    def members(self) -> list[Certificate]:
        return [c for c in (self.leaf, self.intermediate, self.root) if c is not None]


def find(pool: Sequence[Certificate], report: Report) -> Chain | None:
    """The chain for ``report`` among certificates in any order; the one that signed it, if it is there."""
    leaves = [c for c in pool if c.name in LEAVES]
    if not leaves:
        return None
    fitting = [c for c in leaves if LEAVES[c.name] == report.signing_key] or leaves
    leaf = next((c for c in fitting if signs(c, report)), fitting[0])
    intermediate = _issuer(leaf, pool)
    return Chain(leaf, intermediate, _issuer(intermediate, pool) if intermediate else None)


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
    if LEAVES[chain.leaf.name] == "VLEK" and not chain.intermediate.name.startswith("SEV-VLEK"):
        return f"a VLEK is issued by an ASVK, not by {chain.intermediate.name!r}"
    if LEAVES[chain.leaf.name] == "VCEK" and chain.intermediate.name.startswith("SEV-VLEK"):
        return f"a VCEK is issued by an ASK, not by {chain.intermediate.name!r}"
    for depth, certificate in enumerate((chain.intermediate, chain.root)):
        if fault := _authority(certificate, depth):
            return f"{certificate.name!r}: {fault}"
    for certificate in chain.members:
        for extension in certificate.x509.extensions:
            if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
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


def load_crl(raw: bytes) -> x509.CertificateRevocationList:
    """A CRL in DER or PEM.

    Raises:
        Malformed: it can't be read.
    """
    try:
        pem = raw.lstrip().startswith(b"-----BEGIN")
        crl = x509.load_pem_x509_crl(raw) if pem else x509.load_der_x509_crl(raw)
        _ = (crl.issuer, crl.extensions, crl.signature_hash_algorithm, [entry.serial_number for entry in crl])
    except Exception as error:  # its parser raises many kinds, some of them undocumented
        raise Malformed(f"CRL: {' '.join(str(error).split()) or type(error).__name__}") from None
    return crl


def revocation(chain: Chain, crl: x509.CertificateRevocationList, at: datetime) -> str | None:
    """Why ``crl`` doesn't clear the chain: not the root's, not fresh, or a serial number on it; None when it does."""
    if chain.root is None or chain.intermediate is None:
        return "the chain is incomplete"
    if crl.issuer != chain.root.x509.subject or not _verified(
        chain.root, crl.signature, crl.tbs_certlist_bytes, crl.signature_algorithm_oid, crl.signature_hash_algorithm
    ):
        return f"the CRL isn't signed by {chain.root.name!r}"
    if any(e.critical and isinstance(e.value, x509.UnrecognizedExtension) for e in crl.extensions):
        return "the CRL has an unknown critical extension"
    if crl.next_update_utc is None or not crl.last_update_utc <= at <= crl.next_update_utc:
        return f"the CRL isn't fresh at {at.isoformat()}: issued {crl.last_update_utc}, next due {crl.next_update_utc}"
    for certificate in (chain.intermediate, chain.root):
        if crl.get_revoked_certificate_by_serial_number(certificate.x509.serial_number) is not None:
            return f"{certificate.name!r} (serial {certificate.x509.serial_number:#x}) is revoked"
    return None


def _issuer(certificate: Certificate, pool: Sequence[Certificate]) -> Certificate | None:
    named = [c for c in pool if c.x509.subject == certificate.x509.issuer and c.name not in LEAVES]
    return next((c for c in named if _signed_by(certificate.der, certificate, c)), named[0] if named else None)


def _authority(certificate: Certificate, depth: int) -> str | None:
    key = certificate.x509.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
        return "its key isn't RSA-4096"
    for extension in certificate.x509.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            if not value.ca:
                return "not a certificate authority"
            if value.path_length is not None and value.path_length < depth:
                return f"its path length is {value.path_length}"
        if isinstance(value, x509.KeyUsage) and not value.key_cert_sign:
            return "its key may not sign certificates"
    return None


@lru_cache(maxsize=1024)
def _signed_by(_: bytes, below: Certificate, above: Certificate) -> bool:
    c = below.x509
    return _verified(above, c.signature, c.tbs_certificate_bytes, c.signature_algorithm_oid, c.signature_hash_algorithm)


def _verified(
    issuer: Certificate,
    signature: bytes,
    body: bytes,
    algorithm: x509.ObjectIdentifier,
    digest: hashes.HashAlgorithm | None,
) -> bool:
    key = issuer.x509.public_key()
    if algorithm != SignatureAlgorithmOID.RSASSA_PSS or not isinstance(digest, hashes.SHA384):
        return False
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(signature, body, _PSS, hashes.SHA384())
    except InvalidSignature:
        return False
    return True
