"""The verdict on a GPU attestation token: an entity attestation token (EAT, RFC 9711) of NVIDIA's, by its key set.

NVIDIA's remote attestation service takes a GPU's report apart and answers with a bundle: an overall token, and one for
each GPU, whose digests the overall one holds (claims versions 2.0 and 3.0 of its claims guide). The word of that
service is what is verified here; the GPU's own report isn't in it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from privbench.benchmarks.conform import require
from privbench.defenses.tee import jws
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verdict import Check

SCHEMA = 1
ANY = "any"
ISSUER = "https://nras.attestation.nvidia.com"
NONCE = 32
"""Bytes of a GPU's nonce."""

LATEST = 1e11
"""Seconds since 1970: beyond any calendar, and what tells seconds from milliseconds."""

SKEW = 60
"""Seconds that the service's clock may be ahead. An expired token is expired: no such grace there."""

TRUE_CLAIMS = (
    "secboot",
    "x-nvidia-gpu-arch-check",
    "x-nvidia-gpu-attestation-report-parsed",
    "x-nvidia-gpu-attestation-report-nonce-match",
    "x-nvidia-gpu-attestation-report-signature-verified",
    "x-nvidia-gpu-attestation-report-cert-chain-fwid-match",
    "x-nvidia-gpu-driver-rim-signature-verified",
    "x-nvidia-gpu-driver-rim-version-match",
    "x-nvidia-gpu-driver-rim-measurements-available",
    "x-nvidia-gpu-vbios-rim-signature-verified",
    "x-nvidia-gpu-vbios-rim-version-match",
    "x-nvidia-gpu-vbios-rim-measurements-available",
    "x-nvidia-gpu-vbios-index-no-conflict",
)
"""Claims of each GPU that have to be there and true, in so many words: ``"true"`` and 1 are neither."""

DEBUG_OFF = ("disabled", "disabled-since-boot", "disabled-permanently", "disabled-fully-and-permanently")
"""RFC 9711, section 4.2.9."""


@dataclass(frozen=True)
class TokenPolicy:
    """What is demanded of a token.

    Args:
        nonce: the 32 bytes that you gave to the GPU; or ``any``, which gives up freshness.
        issuer: exact ``iss``.
        audience: ``aud``, or one of it; ``None``: the token must be for nobody in particular.
        gpus: how many there have to be; ``None``: one or more.
        models: beginnings of ``hwmodel``, such as ``GH100``; empty is no demand.
        claims: further claims of each GPU with the values that they must have.
    """

    nonce: bytes | str
    issuer: str = ISSUER
    audience: str | None = None
    gpus: int | None = None
    models: tuple[str, ...] = ()
    claims: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fits = self.nonce == ANY or (isinstance(self.nonce, bytes) and len(self.nonce) == NONCE)
        shown = self.nonce.hex() if isinstance(self.nonce, bytes) else self.nonce
        require(fits, "nonce", shown, f"{NONCE} bytes, {2 * NONCE} hexadecimal digits, or {ANY!r}")
        require(bool(self.issuer), "issuer", self.issuer, "the token's iss")
        require(self.gpus is None or self.gpus >= 1, "gpus", self.gpus, "1 or more")


@dataclass
class TokenVerdict:
    """What came out. ``gpus`` has what the service says of each, whether the token was accepted or not."""

    checks: list[Check] = field(default_factory=list)
    gpus: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        return [c.name for c in self.checks if c.status == "fail"]

    @property
    def accepted(self) -> bool:
        return bool(self.checks) and bool(self.gpus) and not self.failed

    def hold(self, name: str, fault: str | None, reason: str) -> None:
        """Record a check: failed for ``fault``, or passed for ``reason``."""
        self.checks.append(Check(name, "fail" if fault else "pass", fault or reason))

    def as_dict(self) -> dict[str, Any]:
        """The stable schema of ``privbench attest gpu --json``."""
        return {
            "schema": SCHEMA,
            "verdict": "accepted" if self.accepted else "refused",
            "checks": [{"name": c.name, "status": c.status, "reason": c.reason} for c in self.checks],
            "gpus": self.gpus,
        }


@dataclass(frozen=True)
class Bundle:
    """A bundle taken apart: the overall token, or ``None`` for one GPU's token alone; and those of GPUs by name."""

    overall: str | None
    gpus: Mapping[str, str]


def unbundle(raw: bytes) -> Bundle:
    """``[["JWT", overall], {"GPU-0": token, ...}]``, or one compact token.

    Raises:
        Malformed: neither.
    """
    if len(raw) > jws.LARGEST:
        raise Malformed(f"a token of more than {jws.LARGEST} bytes")
    if not raw.lstrip().startswith(b"["):
        return Bundle(None, {"GPU-0": raw.decode("ascii", errors="replace").strip()})
    found = jws.read_json("bundle", raw)
    shape = 'a bundle is [["JWT", TOKEN], {"GPU-0": TOKEN, ...}], as the remote attestation service answers'
    if not (isinstance(found, list) and len(found) == 2 and isinstance(found[0], list) and len(found[0]) == 2):
        raise Malformed(shape)
    (kind, overall), gpus = found
    if kind != "JWT" or not isinstance(overall, str) or not isinstance(gpus, dict):
        raise Malformed(shape)
    if not gpus or not all(isinstance(token, str) for token in gpus.values()):
        raise Malformed(f"{shape}; here is no GPU's token")
    return Bundle(overall, gpus)


def verify(raw: bytes, keys: jws.Keys, policy: TokenPolicy, at: datetime) -> TokenVerdict:
    """Verify a token or a bundle, offline. Never raises on its bytes: what is malformed is refused.

    Args:
        raw: the service's answer, or a GPU's token alone.
        keys: of the issuer, which you got from the issuer.
        policy: what is demanded.
        at: the time at which the token has to be valid, with its offset from UTC.
    """
    if at.tzinfo is None:
        raise ValueError(f"at={at}: a time with its offset from UTC")
    verdict = TokenVerdict()
    try:
        bundle = unbundle(raw)
        overall = None if bundle.overall is None else jws.parse(bundle.overall)
        tokens = {name: jws.parse(text) for name, text in bundle.gpus.items()}
    except Malformed as error:
        verdict.hold("token_format", str(error), "")
        return verdict
    verdict.hold("token_format", None, "a bundle" if overall else "one GPU's token")
    if overall is not None:
        _signed(verdict, "overall", overall, keys, policy, at)
        passed = overall.claims.get("x-nvidia-overall-att-result", "missing")
        verdict.hold("overall.result", _wrong("x-nvidia-overall-att-result", passed, True), "true")
        verdict.hold("overall.submods", _members(overall.claims.get("submods"), bundle.gpus), "every token's digest")
    for name, token in tokens.items():
        _signed(verdict, name, token, keys, policy, at)
        _device(verdict, name, token.claims, policy)
        verdict.gpus[name] = {k: token.claims.get(k) for k in ("hwmodel", "ueid", "oemid", *_VERSIONS)}
    _count(verdict, policy)
    return verdict


_VERSIONS = ("x-nvidia-gpu-driver-version", "x-nvidia-gpu-vbios-version")


def _signed(
    verdict: TokenVerdict, name: str, token: jws.Token, keys: jws.Keys, policy: TokenPolicy, at: datetime
) -> None:
    fault = jws.algorithm_fault(token)
    verdict.hold(f"{name}.algorithm", fault, jws.ALGORITHM)
    # Whatever the header says: the signature is checked by the one algorithm and the keys that were brought.
    verdict.hold(f"{name}.signature", jws.signature_fault(token, keys), f"by the key {token.header.get('kid')!r}")
    claims = token.claims
    verdict.hold(f"{name}.issuer", _wrong("iss", claims.get("iss", "missing"), policy.issuer), policy.issuer)
    verdict.hold(f"{name}.audience", _audience(claims, policy.audience), policy.audience or "for nobody in particular")
    verdict.hold(f"{name}.time", _time(claims, at.timestamp()), f"valid at {at.isoformat()}")
    verdict.hold(f"{name}.nonce", _nonce(claims, policy.nonce), "waived" if policy.nonce == ANY else "yours")


def _device(verdict: TokenVerdict, name: str, claims: Mapping[str, Any], policy: TokenPolicy) -> None:
    verdict.hold(f"{name}.measurement", _wrong("measres", claims.get("measres", "missing"), "success"), "success")
    stated = claims.get("dbgstat", "missing")
    verdict.hold(f"{name}.debug", None if stated in DEBUG_OFF else f"dbgstat is {stated!r}: disabled is right", "off")
    for claim in TRUE_CLAIMS:
        verdict.hold(f"{name}.{claim}", _wrong(claim, claims.get(claim, "missing"), True), "true")
    model = claims.get("hwmodel", "missing")
    fits = isinstance(model, str) and (not policy.models or model.startswith(policy.models))
    wanted = " or ".join(policy.models) or "a name"
    verdict.hold(
        f"{name}.model", None if fits and "hwmodel" in claims else f"hwmodel is {model!r}: {wanted}", str(model)
    )
    for claim, value in policy.claims.items():
        verdict.hold(f"{name}.{claim}", _wrong(claim, claims.get(claim, "missing"), value), "as demanded")


def _count(verdict: TokenVerdict, policy: TokenPolicy) -> None:
    ids = [gpu["ueid"] for gpu in verdict.gpus.values()]
    named = all(isinstance(one, str) and one for one in ids)
    fault = None if named and len(set(map(str, ids))) == len(ids) else "a GPU without a ueid, or one that comes twice"
    verdict.hold("gpus.distinct", fault, f"{len(ids)} with ids of their own")
    if policy.gpus is not None:
        fault = None if len(ids) == policy.gpus else f"{len(ids)} of them: {policy.gpus} are demanded"
        verdict.hold("gpus.count", fault, str(policy.gpus))


def _wrong(claim: str, value: Any, right: Any) -> str | None:
    """Types count: ``1`` and ``"true"`` aren't true."""
    return None if type(value) is type(right) and value == right else f"{claim} is {value!r}: {right!r} is right"


def _audience(claims: Mapping[str, Any], expected: str | None) -> str | None:
    """RFC 7519, section 4.1.3: a token for somebody else is refused."""
    if "aud" not in claims:
        return None if expected is None else f"aud is missing: {expected!r} is right"
    stated = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    return None if expected is not None and expected in stated else f"aud is {claims['aud']!r}: it is for others"


def _time(claims: Mapping[str, Any], now: float) -> str | None:
    for name in ("exp", "iat", "nbf"):
        value = claims.get(name)
        if name == "nbf" and value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < LATEST:
            return f"{name} is {value!r}: a time in seconds is right"
    if now >= claims["exp"]:
        return f"expired {now - claims['exp']:.0f} s ago"
    begun = max(claims["iat"], claims.get("nbf", claims["iat"]))
    return f"begins {begun - now:.0f} s later" if begun > now + SKEW else None


def _nonce(claims: Mapping[str, Any], expected: bytes | str) -> str | None:
    stated = claims.get("eat_nonce")
    if not isinstance(stated, str):
        return f"eat_nonce is {stated!r}: a text is right"
    if expected == ANY:
        return None
    assert isinstance(expected, bytes)
    return None if stated.lower() == expected.hex() else f"eat_nonce is {stated!r}: another nonce was given"


def _members(submods: Any, gpus: Mapping[str, str]) -> str | None:
    """Whether the overall token names exactly these tokens, each by the SHA-256 of its compact form."""
    if not isinstance(submods, dict):
        return f"submods is {submods!r}: an object with each GPU's digest is right"
    if set(submods) != set(gpus):
        return f"it names {', '.join(submods) or 'none'}, and the bundle has {', '.join(gpus)}"
    for name, token in gpus.items():
        if submods[name] not in _digests(token):
            return f"{name}: not the token whose digest it holds"
    return None


def _digests(token: str) -> list[Any]:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return [["DIGEST", [name, digest]] for name in ("SHA-256", "SHA256")]
