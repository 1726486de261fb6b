"""Revocation lists (RFC 5280), as AMD's key service hands them out: signed by the root, of intermediates."""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from privbench.defenses.tee.chain import Chain, verified
from privbench.defenses.tee.der import pem_body, quiet, signed_part
from privbench.defenses.tee.report import Malformed

_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"


@dataclass(frozen=True)
class RevocationList:
    """A list as it was read. ``signed`` are the bytes under its signature."""

    x509: x509.CertificateRevocationList
    issuer: x509.Name
    signed: bytes


def load(raw: bytes) -> RevocationList:
    """A list in DER or PEM.

    Raises:
        Malformed: it can't be read.
    """
    _, begin, rest = raw.partition(_BEGIN)
    der = pem_body(rest, _END) if begin else raw
    try:
        with quiet():
            read = x509.load_der_x509_crl(der)
            _ = (read.extensions, read.signature_hash_algorithm, [entry.serial_number for entry in read])
            found = RevocationList(read, read.issuer, signed_part(der, "CRL", 1))
    except Malformed:
        raise
    except Exception as error:  # its parser raises many kinds, some of them undocumented
        raise Malformed(f"CRL: {' '.join(str(error).split()) or type(error).__name__}") from None
    return found


def revocation(chain: Chain, crl: RevocationList, at: datetime) -> str | None:
    """Why ``crl`` doesn't clear the chain: not the root's, not fresh, or a serial number on it; None when it does."""
    if chain.root is None or chain.intermediate is None:
        return "the chain is incomplete"
    c = crl.x509
    made = verified(chain.root, c.signature, crl.signed, c.signature_algorithm_oid, c.signature_hash_algorithm)
    if crl.issuer != chain.root.x509.subject or not made:
        return f"the CRL isn't signed by {chain.root.name!r}"
    if any(e.critical for e in c.extensions):
        return "the CRL has a critical extension: it may be partial, and none of AMD's has one"
    if c.next_update_utc is None or not c.last_update_utc <= at <= c.next_update_utc:
        return f"the CRL isn't fresh at {at.isoformat()}: issued {c.last_update_utc}, next due {c.next_update_utc}"
    for certificate in (chain.intermediate, chain.root):
        if c.get_revoked_certificate_by_serial_number(certificate.x509.serial_number) is not None:
            return f"{certificate.name!r} (serial {certificate.x509.serial_number:#x}) is revoked"
    return None
