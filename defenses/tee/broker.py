"""Secret provisioning: a key broker releases a secret only to evidence that satisfies that secret's policy.

A guest takes a nonce from the broker, makes an X25519 key of its own and has its platform report on
``REPORT_DATA = SHA-512(domain, "key broker", secret's name, KEM key, nonce)``, each with its length before it. The
broker verifies and seals the secret with HPKE (RFC 9180) to that key: a host that carries the messages learns nothing.

The answer isn't signed: a guest knows that nobody else can read it, not who wrote it. What the secret opens has to be
checked by its own digest.
"""

import hashlib
import secrets as random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privbench.benchmarks.build import require
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.platforms.platform import Platform
from privbench.defenses.tee.policy import ANY, Policy
from privbench.defenses.tee.protocol.binding import NONCE, transcript
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.report import SIGNED, SIZE, Malformed
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.verify import verify
from privbench.defenses.tee.wire import pack, unpack

ROLE = b"key broker"
RELEASED = "released"
LARGEST = 1 << 18
"""Bytes of a request that is read."""

MOST = 1 << 14
"""Nonces that are remembered; beyond it the oldest are forgotten, and what is forgotten is refused."""

# AES-256, since what is sealed may be a key of 256 bits.
SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_DOMAIN = b"privbench provisioning 1"
_INFO = b"privbench provisioned secret 1"
_KINDS = {"secret": str, "report": bytes, "certificates": list, "kem_key": bytes, "nonce": bytes}
_SHOWN = 400


@dataclass(frozen=True)
class Entry:
    """One decision of a broker.

    Args:
        time: of the decision, UTC.
        secret: the name that was asked for.
        outcome: ``released``, or the name of the refusal.
        reason: in words, for a refusal.
        measurement: of the report, in hexadecimal; empty without one. Only of a release is it more than a claim.
        evidence: SHA-256 of the report's signed bytes, in hexadecimal; empty without one.
        assurance: ``hardware``, ``software`` or ``custom``; ``none`` for a refusal.
    """

    time: datetime
    secret: str
    outcome: str
    reason: str = ""
    measurement: str = ""
    evidence: str = ""
    assurance: str = "none"


class Broker:
    """Holds secrets, and hands each out to guests that its policy describes. Safe to call from several threads.

    It is no dataclass: its ``repr`` must not show what it holds.

    Args:
        secrets: by name; 1 to 65536 bytes each.
        policies: one for each secret. ``measurements`` lists digests; ``report_data`` is ``any``, since the broker
            fills in its own for every request.
        root: trust this certificate's key instead of AMD's; a software platform's, with ``software-tee`` allowed.
        crl: a certificate revocation list, DER or PEM.
        lifetime: seconds from a challenge to its last use.
        now: the clock, for nonces and certificates.

    Attributes:
        log: every decision, oldest first. It grows: who serves strangers takes entries out.

    Raises:
        ConfigError: a secret without a policy, or a policy that leaves open who may have the secret.
    """

    def __init__(
        self,
        secrets: Mapping[str, bytes],
        policies: Mapping[str, Policy],
        root: Certificate | None = None,
        crl: bytes | None = None,
        lifetime: float = 60.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        for name, value in secrets.items():
            require(name in policies, f"policies.{name}", None, "a policy for each secret")
            require(
                isinstance(value, bytes) and 0 < len(value) <= 1 << 16, f"secrets.{name}", "...", "1 to 65536 bytes"
            )
        for name, policy in policies.items():
            require(name in secrets, f"policies.{name}", "given", "a policy of a secret that there is")
            where = f"policies.{name}.measurements"
            require(policy.measurements != ANY, where, ANY, "launch digests: any code at all would get the secret")
            right = f"{ANY!r}: the broker demands its own, with its challenge in it"
            require(policy.report_data == ANY, f"policies.{name}.report_data", policy.report_data, right)
        require(lifetime > 0, "lifetime", lifetime, "more than 0 seconds")
        self._secrets, self._policies = dict(secrets), dict(policies)
        self._root, self._crl, self._lifetime, self._now = root, crl, timedelta(seconds=lifetime), now
        self._nonces: dict[bytes, tuple[datetime, bool]] = {}  # in order of expiry; and whether it was used
        self._lock = Lock()
        self.log: list[Entry] = []

    def challenge(self) -> bytes:
        """A new nonce of 32 bytes, for one request within ``lifetime`` seconds."""
        nonce, now = random.token_bytes(NONCE), self._now()
        with self._lock:
            for old, (expiry, _) in list(self._nonces.items()):
                if expiry >= now and len(self._nonces) < MOST:
                    break
                del self._nonces[old]
            self._nonces[nonce] = (now + self._lifetime, False)
        return nonce

    def release(self, request: bytes) -> bytes:
        """The secret, sealed to the key in ``request``. The request's nonce is spent whatever comes of it.

        Args:
            request: from :func:`ask`.

        Raises:
            Refused: ``malformed``, ``stale_nonce`` (expired, or never given out here), ``replayed``,
                ``unknown_secret``, ``kem_key`` (not a key that can be sealed to), ``wrong_measurement`` (and nothing
                else is wrong), ``unbound`` (the report isn't over this secret's name, this key and this nonce) or
                ``evidence`` (the reason names the checks that failed).
        """
        said: dict[str, Any] = {}
        verdict: Verdict | None = None
        try:
            said |= _read(request)
            self._spend(said.get("nonce"))
            _check(said)
            name = said["secret"]
            if name not in self._secrets:
                raise Refused("unknown_secret", f"no secret is called {_plain(name)}")
            verdict = self._verify(said)
            sealed = _seal(self._secrets[name], said)
        except Refused as refusal:
            self._record(said, refusal.name, refusal.reason)
            raise
        self._record(said, RELEASED, "", verdict.assurance)
        return sealed

    def _spend(self, nonce: Any) -> None:
        if not isinstance(nonce, bytes):
            raise Refused("malformed", "fields: nonce")
        now = self._now()
        with self._lock:
            expiry, used = self._nonces.get(nonce, (None, False))
            if expiry is None or expiry < now:
                raise Refused("stale_nonce", "it has expired, or this broker never gave it out")
            if used:
                raise Refused("replayed", "the nonce was used before")
            self._nonces[nonce] = (expiry, True)

    def _verify(self, said: Mapping[str, Any]) -> Verdict:
        data = report_data(said["secret"], said["kem_key"], said["nonce"])
        policy = replace(self._policies[said["secret"]], report_data=data)
        verdict = verify(said["report"], said["certificates"], policy, self._now(), self._root, self._crl)
        if verdict.accepted:
            return verdict
        names = {"measurement": "wrong_measurement", "report_data": "unbound"}
        name = names.get(verdict.failed[0], "evidence") if len(verdict.failed) == 1 else "evidence"
        faults = "; ".join(f"{c.name}: {c.reason}" for c in verdict.checks if c.status == "fail")
        raise Refused(name, _plain(faults))

    def _record(self, said: Mapping[str, Any], outcome: str, reason: str, assurance: str = "none") -> None:
        report = said.get("report")
        known = isinstance(report, bytes) and len(report) == SIZE
        measurement = report[0x90:0xC0].hex() if known else ""
        evidence = identity(report).hex() if known else ""
        name = _plain(str(said.get("secret", "")))
        self.log.append(Entry(self._now(), name, outcome, reason, measurement, evidence, assurance))


@dataclass(frozen=True)
class Asked:
    """What a guest has asked for, and keeps until the answer comes.

    Args:
        request: goes to the broker, by any way.
        secret, nonce, evidence: name, challenge and identity of the report, which the answer is bound to.
        private_key: never leaves the guest.
    """

    request: bytes
    secret: str
    nonce: bytes
    evidence: bytes
    private_key: X25519PrivateKey = field(repr=False)


def ask(platform: Platform, name: str, nonce: bytes) -> Asked:
    """Inside a guest: make a key, have it attested, and ask for the secret called ``name``.

    Args:
        nonce: from :meth:`Broker.challenge`, 32 bytes.

    Raises:
        Unavailable: the platform gives no evidence.
    """
    require(len(nonce) == NONCE, "nonce", nonce.hex(), f"{NONCE} bytes")
    key = X25519PrivateKey.generate()
    kem_key = key.public_key().public_bytes_raw()
    made = platform.evidence(report_data(name, kem_key, nonce))
    said = {"secret": name, "report": made.report, "certificates": list(made.certificates)}
    return Asked(pack({**said, "kem_key": kem_key, "nonce": nonce}), name, nonce, identity(made.report), key)


def unseal(asked: Asked, sealed: bytes) -> bytes:
    """Inside the guest that asked: the secret.

    Raises:
        Refused: ``unopenable``: altered, or the answer to another request.
    """
    try:
        return SUITE.decrypt(sealed, asked.private_key, info=_info(asked.secret, asked.nonce, asked.evidence))
    except (InvalidTag, ValueError):
        raise Refused("unopenable", "altered, or the answer to another request") from None


def report_data(name: str, kem_key: bytes, nonce: bytes) -> bytes:
    """The 64 bytes of REPORT_DATA in a request."""
    return hashlib.sha512(transcript(_DOMAIN, ROLE, name.encode(), kem_key, nonce)).digest()


def identity(report: bytes) -> bytes:
    """SHA-256 of a report's signed bytes. Its signature stays out: of each there is a second one that holds too."""
    return hashlib.sha256(report[:SIGNED]).digest()


def _read(request: bytes) -> dict[str, Any]:
    if len(request) > LARGEST:
        raise Refused("malformed", f"a request of {len(request)} bytes: at most {LARGEST}")
    try:
        return unpack(request)
    except Malformed as error:
        raise Refused("malformed", _plain(str(error))) from None


def _check(said: Mapping[str, Any]) -> None:
    odd = [n for n in {**_KINDS, **said} if n not in _KINDS or type(said.get(n)) is not _KINDS[n]]
    if odd or not all(isinstance(c, bytes) for c in said["certificates"]):
        raise Refused("malformed", f"fields: {_plain(', '.join(odd or ['certificates']))}")


def _seal(secret: bytes, said: Mapping[str, Any]) -> bytes:
    info = _info(said["secret"], said["nonce"], identity(said["report"]))
    try:
        return SUITE.encrypt(secret, X25519PublicKey.from_public_bytes(said["kem_key"]), info=info)
    except ValueError:  # another length, or a point of low order
        raise Refused("kem_key", "not an X25519 public key that can be sealed to") from None


def _info(name: str, nonce: bytes, evidence: bytes) -> bytes:
    return transcript(_INFO, name.encode(), nonce, evidence)


def _plain(text: str) -> str:
    """Text of unknown origin, in one short line of ASCII."""
    return text.encode("unicode_escape").decode()[:_SHOWN]
