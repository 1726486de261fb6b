"""DSSE envelopes with one Ed25519 signature, in one spelling: envelope and payload are canonical JSON (RFC 8785).

DSSE itself allows other spellings of the same envelope. They are refused here, so that no byte can be altered unseen.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.dsse import Envelope

from privbench.defenses.tee.report import Malformed

LARGEST = 1 << 24
"""Bytes of an envelope that is read."""
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Signed:
    """An envelope that was read; nobody has verified its signature yet.

    Args:
        payload, payload_type: what is signed.
        keyid: the name of the key, in hexadecimal.
        signature: 64 bytes, if it is one.
    """

    payload: bytes
    payload_type: str
    keyid: str
    signature: bytes

    def signed_by(self, public_key: bytes) -> bool:
        """Whether ``public_key`` (Ed25519, 32 bytes) made the signature, and the envelope names that key."""
        message = Envelope(self.payload, self.payload_type, {}).pae()
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.signature, message)
        except (InvalidSignature, ValueError):
            return False
        return self.keyid == keyid(public_key)


def keyid(public_key: bytes) -> str:
    """SHA-256 of the key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(public_key).hexdigest()


def seal(value: Any, payload_type: str, key: Ed25519PrivateKey) -> bytes:
    """``value`` in a signed envelope.

    Raises:
        Malformed: it has no canonical JSON.
    """
    try:
        payload = rfc8785.dumps(value)
    except (ValueError, TypeError) as error:
        raise Malformed(str(error)) from None
    signature = key.sign(Envelope(payload, payload_type, {}).pae())
    name = keyid(key.public_key().public_bytes_raw())
    signatures = [{"keyid": name, "sig": base64.b64encode(signature).decode()}]
    return rfc8785.dumps(
        {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": signatures}
    )


def read(raw: bytes, payload_type: str) -> tuple[Any, Signed]:
    """The payload's value, and what is signed.

    Raises:
        Malformed: anything but an envelope in the spelling of :func:`seal`. Nothing else is raised.
    """
    if len(raw) > LARGEST:
        raise Malformed(f"an envelope of {len(raw)} bytes: at most {LARGEST}")
    found = canonical(raw, "the envelope")
    if not isinstance(found, dict) or set(found) != {"payload", "payloadType", "signatures"}:
        raise Malformed("fields of the envelope")
    signatures = found["signatures"]
    if found["payloadType"] != payload_type or not isinstance(signatures, list) or len(signatures) != 1:
        raise Malformed(f"the envelope holds no {payload_type} with one signature")
    only = signatures[0]
    if not isinstance(only, dict) or set(only) != {"keyid", "sig"}:
        raise Malformed("fields of the signature")
    if not isinstance(only["keyid"], str) or not _HEX.fullmatch(only["keyid"]):
        raise Malformed("the key's id")
    payload = _base64(found["payload"])
    return canonical(payload, "the payload"), Signed(payload, payload_type, only["keyid"], _base64(only["sig"]))


def canonical(raw: bytes, what: str) -> Any:
    """The value of canonical JSON.

    Raises:
        Malformed: other bytes.
    """
    value = parsed(raw, what)
    try:
        spelled = rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:  # NaN, integers beyond 2^53, half a surrogate pair
        raise Malformed(f"{what} has no canonical form: {error}") from None
    if spelled != raw:
        raise Malformed(f"{what} is not canonical JSON")
    return value


def parsed(raw: bytes, what: str) -> Any:
    """The value of JSON.

    Raises:
        Malformed: other bytes.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not JSON: {' '.join(str(error).split())[:200]}") from None


def _base64(text: Any) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise Malformed("not base64") from None
    if base64.b64encode(raw).decode() != text:
        raise Malformed("not base64 in its one spelling")
    return raw
