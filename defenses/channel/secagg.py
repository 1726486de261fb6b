"""Secure aggregation: the server gets the sum of the updates and no single one."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from privbench.benchmarks.build import RUNTIME, require
from privbench.benchmarks.federation.server import ServerState
from privbench.defenses.accounting.guarantee import fresh
from privbench.defenses.accounting.plan import ClientLevel, ClientPlan, Facts, Plan
from privbench.defenses.channel.channel import Setup
from privbench.defenses.noise import Source
from privbench.defenses.secagg.encoding import Encoding, Ring, Rounding
from privbench.defenses.secagg.parameters import Parameters, limits

if TYPE_CHECKING:
    from privbench.defenses.secagg.session import SecAggSession

DEVIATIONS = 6
"""Of a client's noise that ``range`` has to hold beside the clip: beyond it, it would be cut off."""


@dataclass(frozen=True)
class SecAgg:
    """Pairwise masks that cancel in the sum, with drop-out recovery (Bonawitz et al. 2017, against a curious server).

    Args:
        range: a coordinate of an update is clipped to ``[-range, range]`` by its client, > 0.
        bits: of a coordinate's integer, sign included; it and the bits of the summed weights have to fit the ring.
        ring: sums are modulo 2^32 or 2^64.
        rounding: ``stochastic``, right on average, or ``nearest``.
        threshold: share of a round's clients without which nothing is unmasked, in (0.5, 1].
        late_dropout: probability that a client that shared its keys sends no update, in [0, 1).
        unmask_dropout: probability that a client that sent its update doesn't help to unmask, in [0, 1).
        keys: ``system`` draws them from the operating system; ``seeded`` from the run's seed, for whoever wants the
            same messages again. Masks cancel, so that no number depends on it.
    """

    range: float = 1.0
    bits: int = 16
    ring: Ring = 32
    rounding: Rounding = "stochastic"
    threshold: float = 0.67
    late_dropout: float = 0.0
    unmask_dropout: float = 0.0
    keys: Source = field(default="system", metadata=RUNTIME)
    plaintext: bool = field(default=False, init=False)
    sums_only: bool = field(default=True, init=False)
    apart: bool = field(default=False, init=False)
    isolation: str = field(default="same_process", init=False)

    def __post_init__(self) -> None:
        require(0 < self.range < math.inf, "range", self.range, "must be positive")
        hint = f"from 2 to {self.ring - 2}, so that a sum of two fits the ring"
        require(2 <= self.bits <= self.ring - 2, "bits", self.bits, hint)
        hint = "at most 48: a float64 holds no more of a coordinate and its rounding"
        require(self.bits <= 48, "bits", self.bits, hint)
        hint = "above 0.5 and at most 1: with half of the clients a server could be told both secrets of one"
        require(0.5 < self.threshold <= 1, "threshold", self.threshold, hint)
        for name in ("late_dropout", "unmask_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, name, value, "a probability in [0, 1)")

    @property
    def dropout(self) -> float:
        return self.late_dropout

    @property
    def grid(self) -> float:
        return self.encoding.step

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.range, self.bits, self.ring, self.rounding)

    def check(self, facts: Facts, weighting: str, plan: Plan | None) -> None:
        expected = round(facts.expected)
        field = "federation.participation" if facts.clients > 1 else "federation.clients"
        value = facts.participation if facts.clients > 1 else facts.clients
        require(expected >= 2, field, value, "at least 2 clients a round: a sum of one is its update")
        weights = _weights(facts, weighting)
        if limits(self.encoding, weights) is None:
            room = self.encoding.capacity
            hint = f"fewer bits, or ring=64: weights of {sum(weights)} in all, and sums of {self.bits} bits overflow"
            require(False, "defense.channel.bits", self.bits, f"{hint} {self.ring} from {room + 1}")
        hint = "system: fresh noise hides nothing in messages that whoever knows the seed can unmask"
        require(self.keys == "system" or not fresh(plan), "defense.channel.keys", self.keys, hint)
        if isinstance(plan, ClientPlan):
            most = plan.clip * (1 + DEVIATIONS * plan.message_multiplier)
            hint = f"at least {most:.3g}: a clip of {plan.clip:g} and {DEVIATIONS} deviations of a client's noise"
            require(self.range >= most, "defense.channel.range", self.range, hint)

    def parameters(self, setup: Setup) -> Parameters:
        """What the parties of a run have agreed on."""
        facts, privacy = setup.facts, setup.privacy
        most = limits(self.encoding, _weights(facts, setup.weighting))
        assert most is not None  # Federation has checked it
        needed = privacy.bind(facts).needed if isinstance(privacy, ClientLevel) else 0
        expected = round(facts.expected)
        return Parameters(
            encoding=self.encoding,
            threshold=self.threshold,
            expected=expected,
            needed=needed,
            weighting=setup.weighting,
            most=most,
            noised=isinstance(privacy, ClientLevel),
            keys=self.keys,
            seed=setup.seed,
        )

    def start(self, setup: Setup, state: ServerState) -> "SecAggSession":
        # Cryptography is loaded by runs that need it.
        from privbench.defenses.secagg.session import SecAggSession

        return SecAggSession(self, setup)


def _weights(facts: Facts, weighting: str) -> tuple[int, ...]:
    return facts.records if weighting == "records" else (1,) * facts.clients
