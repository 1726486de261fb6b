"""CPU and GPU evidence as one: the guest's report commits to the GPU's token, and both to one challenge.

A verifier gives one challenge. The GPU's nonce is derived from it; the guest, once it has the token, asks for a report
whose REPORT_DATA is derived from the challenge and from all tokens of the bundle. Whoever exchanges the token changes
what REPORT_DATA has to be; whoever exchanges the report brings one that commits to another token or challenge.

That the GPU is plugged into this guest's machine is the word of the guest: its measured code talked to the GPU. Reports
of other guests can commit to any token, so a measurement on the allow-list is what makes the bond mean something.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from privbench.benchmarks.conform import ConfigError, require
from privbench.defenses.tee import gpu, jws
from privbench.defenses.tee import verify as snp
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.report import Malformed, parse
from privbench.defenses.tee.verdict import Check, Verdict

SCHEMA = "privbench composite evidence 1"
CHALLENGE = 32
"""Bytes of a challenge."""

LARGEST = 1 << 24
_NONCE, _DATA = b"privbench gpu nonce 1", b"privbench composite report data 1"


def gpu_nonce(challenge: bytes) -> bytes:
    """The nonce for the GPU, 32 bytes."""
    require(len(challenge) == CHALLENGE, "challenge", challenge.hex(), f"{CHALLENGE} bytes")
    return hashlib.sha256(transcript(_NONCE, challenge)).digest()


def report_data(challenge: bytes, token: bytes) -> bytes:
    """REPORT_DATA for the guest's report, 64 bytes: over the challenge and what is signed of every token.

    Raises:
        Malformed: ``token`` isn't a bundle or a token.
    """
    require(len(challenge) == CHALLENGE, "challenge", challenge.hex(), f"{CHALLENGE} bytes")
    bundle = gpu.unbundle(token)
    named = [("", bundle.overall)] if bundle.overall is not None else []
    # Of a signature (r, s) there is a second one, (r, n - s): what it is over has one spelling.
    parts = [(n.encode(), jws.parse(text).signed) for n, text in [*named, *sorted(bundle.gpus.items())]]
    return hashlib.sha512(transcript(_DATA, challenge, *(part for pair in parts for part in pair))).digest()


@dataclass(frozen=True)
class Manifest:
    """Evidence of both, as it is handed over.

    Args:
        report: 1184 bytes.
        certificates: of the report.
        token: the attestation service's answer.
    """

    report: bytes
    certificates: Sequence[bytes]
    token: bytes

    def as_json(self) -> str:
        """The manifest as a file's text."""
        made = {
            "schema": SCHEMA,
            "cpu": {"report": _text(self.report), "certificates": [_text(c) for c in self.certificates]},
            "gpu": {"token": _text(self.token)},
        }
        return json.dumps(made, indent=1) + "\n"


def read(raw: bytes) -> Manifest:
    """A manifest from a file's bytes.

    Raises:
        ConfigError: it isn't one.
    """
    try:
        if len(raw) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        found = json.loads(raw)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError(f"its schema has to be {SCHEMA!r}")
        cpu, token = found["cpu"], found["gpu"]["token"]
        return Manifest(_bytes(cpu["report"]), [_bytes(c) for c in cpu["certificates"]], _bytes(token))
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise ConfigError("manifest", "the file", f"not composite evidence: {error}") from None


@dataclass(frozen=True)
class CompositeVerdict:
    """What came out of each part, and of what holds them together."""

    cpu: Verdict
    gpu: gpu.TokenVerdict
    bond: Check

    @property
    def accepted(self) -> bool:
        return self.cpu.accepted and self.gpu.accepted and self.bond.status == "pass"

    def as_dict(self) -> dict[str, Any]:
        """The stable schema of ``privbench attest bind verify --json``."""
        return {
            "schema": 1,
            "verdict": "accepted" if self.accepted else "refused",
            "assurance": self.cpu.assurance if self.accepted else "none",
            "bond": {"name": self.bond.name, "status": self.bond.status, "reason": self.bond.reason},
            "cpu": self.cpu.as_dict(),
            "gpu": self.gpu.as_dict(),
        }


def verify(
    manifest: Manifest,
    challenge: bytes,
    policy: Policy,
    token_policy: gpu.TokenPolicy,
    keys: jws.Keys,
    at: datetime,
    root: Certificate | None = None,
    crl: bytes | None = None,
) -> CompositeVerdict:
    """Verify both and their bond.

    Args:
        manifest: the evidence.
        challenge: the 32 bytes that you gave.
        policy: of the report; its ``report_data`` and ``nonce`` are replaced by what the bond asks for.
        token_policy: of the token; its ``nonce`` is replaced by the challenge's.
        keys: of the token's issuer.
        at, root, crl: as of the report's verification.
    """
    try:
        expected = report_data(challenge, manifest.token)
        fault = _bond(manifest.report, expected)
    except Malformed as error:
        expected, fault = bytes(64), f"the token can't be read: {error}"
    bound = replace(policy, report_data=expected, nonce=None)
    cpu = snp.verify(manifest.report, manifest.certificates, bound, at, root, crl)
    own = gpu.verify(manifest.token, keys, replace(token_policy, nonce=gpu_nonce(challenge)), at)
    bond = Check("bond", "fail" if fault else "pass", fault or "the report commits to this token and this challenge")
    return CompositeVerdict(cpu, own, bond)


def _bond(report: bytes, expected: bytes) -> str | None:
    try:
        held = parse(report).report_data
    except Malformed as error:
        return f"the report can't be read: {error}"
    return None if held == expected else "the report commits to another GPU token, or to another challenge"


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("base64 is missing")
    return base64.b64decode(text, validate=True)
