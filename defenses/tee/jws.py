"""Signed JSON tokens in compact form (RFC 7515, 7517, 7519), for one algorithm: ES384, ECDSA on P-384 with SHA-384.

One algorithm that the verifier names, and keys that the verifier brings: what a token says of either is compared and
never followed. ``none``, a MAC keyed by a public key, and keys or addresses of keys in the header get nowhere.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from privbench.defenses.tee.report import Malformed

ALGORITHM = "ES384"
LARGEST = 1 << 20
"""Bytes of a token or a key set that is read."""

_COORDINATE = 48
_FOLLOWED = ("jwk", "jku", "x5u", "crit", "b64")
"""Header members that would make a verifier take a key or a rule from the token; ``crit`` demands to be understood."""

Keys = dict[str, EllipticCurvePublicKey]


@dataclass(frozen=True)
class Token:
    """A token that was read; nobody has verified it yet.

    Args:
        header, claims: JSON objects.
        signed: the bytes that the signature is over.
        signature: r and s.
    """

    header: dict[str, Any]
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def parse(text: str) -> Token:
    """A token from its compact form.

    Raises:
        Malformed: it isn't one, in the only spelling that there is.
    """
    if len(text) > LARGEST:
        raise Malformed(f"a token of more than {LARGEST} bytes")
    parts = text.split(".")
    if len(parts) != 3 or not text.isascii():
        raise Malformed(f"{len(parts)} parts between dots: a compact JWS has 3")
    header, claims, signature = (_decode(part) for part in parts)
    return Token(_object("header", header), _object("payload", claims), f"{parts[0]}.{parts[1]}".encode(), signature)


def key_set(raw: bytes) -> Keys:
    """P-384 keys of a JWKS by their ``kid``. Keys of other kinds are passed over: no token here is signed by one.

    Raises:
        Malformed: it isn't a key set, a P-384 key in it isn't a point of the curve, or two have one name.
    """
    if len(raw) > LARGEST:
        raise Malformed(f"a key set of more than {LARGEST} bytes")
    given = _object("key set", raw).get("keys")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise Malformed("a key set is an object with a list of keys")
    found: Keys = {}
    for one in given:
        if (one.get("kty"), one.get("crv")) != ("EC", "P-384") or one.get("alg", ALGORITHM) != ALGORITHM:
            continue
        if one.get("use", "sig") != "sig":
            continue
        kid = one.get("kid")
        if not isinstance(kid, str) or not kid:
            raise Malformed("a P-384 key without a kid")
        if kid in found:
            raise Malformed(f"two keys with the kid {kid!r}")
        found[kid] = _point(one)
    if not found:
        raise Malformed("no P-384 key (kty EC, crv P-384) for signatures in the set")
    return found


def algorithm_fault(token: Token) -> str | None:
    """Why the header can't be taken, if so."""
    stated = token.header.get("alg")
    if isinstance(stated, str) and stated.lower() == "none":
        return "alg none: signed by nobody, as a verifier on the guest itself writes it"
    if stated != ALGORITHM:
        return f"alg {stated!r}: only {ALGORITHM} is taken, whatever the key"
    for name in _FOLLOWED:
        if name in token.header:
            return f"the header has {name}, which is not followed"
    return None


def signature_fault(token: Token, keys: Keys) -> str | None:
    """Why the signature isn't one of the set's keys, if so."""
    kid = token.header.get("kid")
    if not isinstance(kid, str):
        return "the header names no key (kid)"
    if kid not in keys:
        return f"no key {kid!r} in the set"
    if len(token.signature) != 2 * _COORDINATE:
        return f"a signature of {len(token.signature)} bytes, {2 * _COORDINATE} are right"
    r, s = (int.from_bytes(token.signature[i : i + _COORDINATE], "big") for i in (0, _COORDINATE))
    try:
        keys[kid].verify(encode_dss_signature(r, s), token.signed, ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return f"not signed by the key {kid!r}"
    return None


def _decode(part: str) -> bytes:
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("a part isn't base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != part:
        raise Malformed("a part isn't base64url in its only spelling")
    return raw


def read_json(what: str, raw: bytes) -> Any:
    """JSON in which each name comes once in an object, numbers are numbers, and texts are Unicode's.

    Raises:
        Malformed: it isn't such JSON; ``what`` is its name.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice in an object")
        return dict(pairs)

    def constant(name: str) -> float:
        raise ValueError(f"{name} is no JSON number")

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
        # Half a surrogate pair is no character (RFC 7493, section 2.1): it can be neither hashed nor printed.
        json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the {what} isn't JSON: {error}") from None


def _object(what: str, raw: bytes) -> dict[str, Any]:
    found = read_json(what, raw)
    if not isinstance(found, dict):
        raise Malformed(f"the {what} isn't a JSON object")
    return found


def _point(one: dict[str, Any]) -> EllipticCurvePublicKey:
    parts = []
    for name in ("x", "y"):
        value = one.get(name)
        raw = _decode(value) if isinstance(value, str) else b""
        if len(raw) != _COORDINATE:
            raise Malformed(f"{name} of the key {one.get('kid')!r} has to be {_COORDINATE} bytes")
        parts.append(int.from_bytes(raw, "big"))
    try:
        return EllipticCurvePublicNumbers(*parts, SECP384R1()).public_key()
    except ValueError:
        raise Malformed(f"the key {one.get('kid')!r} isn't a point of P-384") from None
