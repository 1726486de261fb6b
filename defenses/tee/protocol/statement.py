"""in-toto Statements v1 in DSSE envelopes: what receipts of rounds and of decisions have in common."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privbench.defenses.tee.protocol import dsse
from privbench.defenses.tee.report import Malformed

TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD = "application/vnd.in-toto+json"


def seal(subject: list[Any], predicate_type: str, predicate: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """The statement in a signed envelope.

    Raises:
        Malformed: it has no canonical JSON.
    """
    whole = {"_type": TYPE, "subject": subject, "predicateType": predicate_type, "predicate": predicate}
    return dsse.seal(whole, PAYLOAD, key)


def read(envelope: bytes, predicate_type: str) -> tuple[Any, Any, dsse.Signed]:
    """Subject, predicate, and what is signed; the signature is not verified.

    Raises:
        Malformed: anything but a statement of this type of predicate. Nothing else is raised, whatever the bytes.
    """
    found, signed = dsse.read(envelope, PAYLOAD)
    if not isinstance(found, dict) or set(found) != {"_type", "subject", "predicateType", "predicate"}:
        raise Malformed("fields of the statement")
    if found["_type"] != TYPE or found["predicateType"] != predicate_type:
        raise Malformed("another type of statement or of predicate")
    return found["subject"], found["predicate"], signed
