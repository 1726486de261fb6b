"""What the attested protocol adds to an update: sealing it with HPKE, opening it, and the receipt of a round."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.benchmarks.conform import require
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps
from privbench.defenses.tee.protocol import receipts, sealing


@dataclass(frozen=True)
class ConfidentialUpdate:
    """The protocol's own functions, on updates of noise.

    Args:
        parameters: of an update, one case each for ``seal`` and ``open``.
        cohort: clients of the round that ``receipt_sign`` and ``receipt_verify`` state.
        seed: of the update.
    """

    parameters: tuple[int, ...] = (10_000, 1_000_000)
    cohort: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        distinct = len(set(self.parameters)) == len(self.parameters)
        sizes = bool(self.parameters) and min(self.parameters) >= 1 and distinct
        require(sizes, "parameters", self.parameters, "numbers from 1, each once")
        require(1 <= self.cohort <= 100_000, "cohort", self.cohort, "1 to 100000")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")

    def cases(self, bench: Bench) -> Iterator[Case]:
        for size in self.parameters:
            for name in ("seal", "open"):
                yield Case(f"{name}-{size}", lambda n=name, s=size: self._hpke(n, s), 4 * size, "bytes")
        for name in ("receipt_sign", "receipt_verify"):
            yield Case(f"{name}-{self.cohort}", lambda n=name: self._receipt(n), unit="receipts")

    @contextmanager
    def _hpke(self, name: str, size: int) -> Iterator[Steps]:
        values = torch.randn(size, generator=torch.Generator().manual_seed(self.seed))
        layout = Layout(("w",), ((size,),), 1)
        update = Update(values, layout, "update", 10)
        place = sealing.Place(bytes(32), 1, 1, 0, bytes(32), bytes(32), bytes(32))
        kem, signing = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        public = kem.public_key().public_bytes_raw()
        identity = signing.public_key().public_bytes_raw()
        message = sealing.seal(update, place, public, signing)

        def opened() -> Update:
            there, sealed, signature = sealing.read(message)
            sealing.check_signature(there, sealed, signature, identity)
            return sealing.decode(sealing.open_(sealed, there, kem), there.client, layout)

        runs: dict[str, Callable[[], object]] = {
            "seal": lambda: sealing.seal(update, place, public, signing),
            "open": opened,
        }
        yield Steps(runs[name])

    @contextmanager
    def _receipt(self, name: str) -> Iterator[Steps]:
        key = Ed25519PrivateKey.generate()
        made = _receipt_of(self.cohort)
        envelope = receipts.sign(made, key)
        public = key.public_key().public_bytes_raw()
        runs: dict[str, Callable[[], object]] = {
            "receipt_sign": lambda: receipts.sign(made, key),
            "receipt_verify": lambda: receipts.verify_signature(envelope, public),
        }
        yield Steps(runs[name])


def _receipt_of(cohort: int) -> receipts.Receipt:
    """A round of a plain mean with so many accepted messages; its digests are of nothing."""
    return receipts.Receipt(
        run="overhead",
        manifest="00" * 32,
        round=1,
        attempt=1,
        previous="00" * 32,
        evidence=dict.fromkeys(receipts.EVIDENCE, "00" * 32),
        start_model="00" * 32,
        model="00" * 32,
        state="00" * 32,
        invited=cohort,
        accepted=cohort,
        refused={},
        inputs=sorted(secrets.token_hex(32) for _ in range(cohort)),
        rule="privbench.defenses.aggregation.Mean",
        clip=None,
        noise_multiplier=None,
        sampling="fixed",
        sampling_rate=1.0,
        delta=None,
        statements=(),
        time="2026-01-01T00:00:00Z",
    )
