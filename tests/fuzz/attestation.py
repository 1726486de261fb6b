"""Fuzzing of the attestation verifier by coverage: ``make fuzz``, ``python tests/fuzz/attestation.py OPTION ... DIR``.

Needs atheris (``pip install atheris``), which pytest and the suite do without. Options are libFuzzer's, such as
``-max_total_time=600``. Inputs that reach new code are kept in DIR, if one is named; the next run starts from them.

The first byte of an input says what the rest is: a report, certificates, a certificate table, a revocation list, or
alterations of evidence that holds. Two things must never happen: an exception, and acceptance of anything but the
evidence that the forger here signed itself.
"""

import contextlib
import gc
import importlib
import struct
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from privbench.defenses.tee import certificates, chain, report, table
from privbench.defenses.tee.platforms.software.authority import Authority
from privbench.defenses.tee.platforms.software.firmware import Launched, evidence
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.verify import verify

ALTERATION = struct.Struct("<HB")
"""Where (modulo the length) and with what a byte is XORed."""

POLICY = Policy("any", "any", tcb_floor="none", allow=frozenset({"software-tee"}))
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)


class Target:
    """What every input is tried on: evidence of the software platform, in all its forms."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)
        made = evidence(Authority(self.at).chip(), Launched(b"m" * 48), b"d" * 64)
        self.report, self.held = made.report, made.certificates
        (self.root,) = certificates.load(self.held[2])
        self.pem = b"".join(certificates.load(der)[0].x509.public_bytes(Encoding.PEM) for der in self.held)
        self.table = packed(self.held)
        self.list = foreign_list(self.root, self.at)
        self.kinds = (
            self.any_report,
            self.any_certificates,
            self.any_table,
            self.any_list,
            self.altered_report,
            self.altered_certificates,
            self.altered_forms,
        )
        for held in (self.held, [self.table], [self.pem]):
            assert self.accepted(self.report, *held)

    def __call__(self, data: bytes) -> None:
        if data:
            self.kinds[data[0] % len(self.kinds)](data[1:])

    def seeds(self) -> list[bytes]:
        bit = ALTERATION.pack(0, 1)
        rest = [self.report, self.table, self.table[16:], self.list, bit, bit, bit]
        return [bytes((kind,)) + r for kind, r in enumerate(rest)] + [b"\1" + self.held[0], b"\1" + self.pem]

    def accepted(self, raw: bytes, *held: bytes, revoked: bytes | None = None) -> bool:
        verdict = verify(raw, held, POLICY, self.at, self.root, revoked)
        verdict.as_dict()
        return verdict.accepted

    def genuine(self, held: bytes) -> bool:
        """Whether ``held`` gives the forger's own leaf and intermediate, whatever is around them."""
        return set(self.held[:2]) <= {c.der for c in certificates.load(held)}

    def any_report(self, rest: bytes) -> None:
        for raw in (rest, rest.ljust(report.SIZE, b"\0")[: report.SIZE]):
            assert not self.accepted(raw, *self.held) or raw == self.report

    def any_certificates(self, rest: bytes) -> None:
        certificates.recognised(rest)
        assert not self.accepted(self.report, rest) or self.genuine(rest)

    def any_table(self, rest: bytes) -> None:
        with contextlib.suppress(report.Malformed):
            table.parse(rest)
        self.any_certificates(self.table[:16] + rest)

    def any_list(self, rest: bytes) -> None:
        # The root signed no list, and nobody else's clears anyone.
        for revoked in (rest, altered(self.list, rest)):
            assert not self.accepted(self.report, *self.held, revoked=revoked)

    def altered_report(self, rest: bytes) -> None:
        raw = altered(self.report, rest)
        assert not self.accepted(raw, *self.held) or raw == self.report

    def altered_certificates(self, rest: bytes) -> None:
        leaf, middle = altered(self.held[0], rest), altered(self.held[1], rest[::-1])
        for held in ((leaf, middle), (leaf, self.held[1]), (self.held[0], middle)):
            assert not self.accepted(self.report, *held) or held == self.held[:2]
        with contextlib.suppress(report.Malformed):
            (read,) = certificates.load(leaf)
            chain.issuers(chain.Chain(read, self.root, self.root))
            certificates.leaf(read)

    def altered_forms(self, rest: bytes) -> None:
        for form in (self.table, self.pem):
            held = altered(form, rest)
            assert not self.accepted(self.report, held) or self.genuine(held)


def altered(source: bytes, by: bytes) -> bytes:
    changed = bytearray(source)
    for where, mask in ALTERATION.iter_unpack(by[: len(by) // ALTERATION.size * ALTERATION.size]):
        changed[where % len(changed)] ^= mask
    return bytes(changed)


def packed(held: tuple[bytes, ...]) -> bytes:
    """A certificate table of leaf, intermediate and root."""
    headers, offset = b"", 24 * (len(held) + 1)
    for name, der in zip(("VCEK", "ASK", "ARK"), held, strict=True):
        headers += next(g for g, n in table.GUIDS.items() if n == name).bytes + struct.pack("<II", offset, len(der))
        offset += len(der)
    return headers + bytes(24) + b"".join(held)


def foreign_list(root: certificates.Certificate, at: datetime) -> bytes:
    """A revocation list with the root's name, signed by another key."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(root.x509.subject).last_update(at).next_update(at)
    signed = builder.sign(rsa.generate_private_key(65537, 4096), hashes.SHA384(), rsa_padding=PSS)
    return signed.public_bytes(Encoding.DER)


def main() -> None:
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("tests/fuzz/attestation.py needs atheris: pip install atheris")
    for function in [f for f in gc.get_objects() if isinstance(f, FunctionType)]:
        if (function.__module__ or "").startswith("privbench.defenses.tee."):
            atheris.instrument_func(function)
    target = Target()
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.seeds()):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        # libFuzzer writes into the first folder, and only reads the second.
        atheris.Setup([*sys.argv, "-max_len=8192", folder], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
