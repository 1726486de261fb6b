"""How long the verification of one attestation report takes, with certificates parsed anew and from the cache.

    python -m privbench.benchmarks.speed.attestation [--report FILE --certs PATH ...] [--at RFC3339] [--repeats N]

Without a report, on evidence that the software platform signs here: the same sizes of keys and the same checks as
AMD's. Reading files isn't timed. Where ``omne-attest`` from PyPI (0.1.0, which verifies reports offline from bytes) is
installed, it verifies the same evidence. It parses certificates at every call and checks less: no validity, issuer
names, roles of certificates, product, VLEK, or format beyond version and length.
"""

import argparse
import hashlib
import importlib
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cryptography

from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee.der import quiet
from privbench.defenses.tee.platforms.software.authority import Authority
from privbench.defenses.tee.platforms.software.firmware import Launched, evidence
from privbench.defenses.tee.policy import ALLOW, Policy
from privbench.defenses.tee.report import parse
from privbench.defenses.tee.verify import verify

POLICY = Policy("any", "any", tcb_floor="none", allow=frozenset(ALLOW))
"""Nothing that depends on the guest, so that any genuine report passes."""


@dataclass(frozen=True)
class Work:
    """One verification.

    Args:
        report, material: the bytes of a report and of certificates.
        at: the time at which certificates have to be valid.
        root: trusted instead of AMD's root keys; None for AMD's.
    """

    report: bytes
    material: tuple[bytes, ...]
    at: datetime
    root: certs.Certificate | None = None

    def run(self) -> None:
        """Raises:
        SystemExit: the evidence doesn't hold, so timing it would mislead.
        """
        verdict = verify(self.report, self.material, POLICY, self.at, self.root)
        if not verdict.accepted:
            sys.exit(f"this evidence is refused: {', '.join(verdict.failed)}")


def forged() -> Work:
    now = datetime.now(UTC)
    made = evidence(Authority(now).chip(), Launched(b"m" * 48), b"d" * 64)
    return Work(made.report, made.certificates, now, certs.load(made.certificates[2])[0])


def forget() -> None:
    """Drop parsed certificates and the signatures that were checked on them."""
    certs._load.cache_clear()
    chains._signed_by.cache_clear()


def peer(work: Work) -> Callable[[], None] | None:
    """omne-attest on the same evidence; None where it isn't installed."""
    if not importlib.util.find_spec("omne_attest"):
        return None
    omne: Any = importlib.import_module("omne_attest")
    pool = [c for raw in work.material for c in certs.load(raw)]
    chain = chains.candidates(pool, parse(work.report))[0]
    ders = [c.der for c in chain.members]
    pin = hashlib.sha256(ders[2]).digest()

    def run() -> None:
        with quiet():
            omne.verify(work.report, *ders, pin, omne.Policy(max_vmpl=3, reject_debug=False))

    return run


def milliseconds(function: Callable[[], None], before: Callable[[], None]) -> float:
    before()
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--certs", type=Path, nargs="+", default=[])
    parser.add_argument("--at", type=datetime.fromisoformat, default=datetime.now(UTC))
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    if bool(options.report) != bool(options.certs):
        parser.error("--report and --certs belong together")
    if options.repeats < 1 or options.at.tzinfo is None:
        parser.error("--repeats is at least 1, and --at has an offset from UTC")
    work = forged()
    if options.report:
        files = [f for p in options.certs for f in (sorted(p.iterdir()) if p.is_dir() else [p]) if f.is_file()]
        material = tuple(raw for raw in (f.read_bytes() for f in files) if certs.recognised(raw))
        work = Work(options.report.read_bytes(), material, options.at)
    contenders: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "privbench, certificates cached": (work.run, lambda: None),
        "privbench, certificates parsed anew": (work.run, forget),
    }
    if other := peer(work):
        contenders["omne-attest, certificates parsed anew"] = (other, lambda: None)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    work.run()
    for _ in range(options.repeats):
        # They take turns, and so share whatever else the machine does. Parsing anew leaves a full cache behind.
        for name, contender in contenders.items():
            taken[name].append(milliseconds(*contender))
    print(f"Python {platform.python_version()}, cryptography {cryptography.__version__}, {os.cpu_count()} cores,")
    print(f"{options.repeats} verifications each, milliseconds:\n")
    print("| | median | least | most | x the first |\n|---|---|---|---|---|")
    first = statistics.median(taken["privbench, certificates cached"])
    for name, times in taken.items():
        middle = statistics.median(times)
        print(f"| {name} | {middle:.2f} | {min(times):.2f} | {max(times):.2f} | {middle / first:.2f} |")


if __name__ == "__main__":
    main()
