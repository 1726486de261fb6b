"""A defense: a choice at each of the four stations, and one privacy plan if it claims a guarantee."""

import math
from dataclasses import dataclass, field

from torch import nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.update import Layout
from privbench.defenses.accounting.discrete import Grid
from privbench.defenses.accounting.plan import ClientLevel, ClientPlan, Facts, Plan, Privacy, RecordLevel
from privbench.defenses.aggregation import AdaptiveClippedMean, ClippedMean, FixedDenominatorMean, Mean, Rule, SumRule
from privbench.defenses.channel import Channel, Plaintext, SecAgg
from privbench.defenses.local import Local
from privbench.defenses.release import BandedGaussian, Release, Unchanged


@dataclass(frozen=True)
class Defense:
    """The four stations of an update's way; the default is no defense at all.

    Args:
        local: on the client, before anything is sent.
        channel: who can see an update on its way.
        aggregation: how updates become one.
        release: what happens before the model leaves.
        privacy: the guarantee that the stations together give, ``None`` for none.
    """

    local: Local = field(default_factory=Local)
    channel: Channel = field(default_factory=Plaintext)
    aggregation: Rule = field(default_factory=Mean)
    release: Release = field(default_factory=Unchanged)
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        client_level = isinstance(self.privacy, ClientLevel)
        record_level = isinstance(self.privacy, RecordLevel)
        name = type(self.aggregation).__name__
        noise = self.privacy.noise if isinstance(self.privacy, ClientLevel) else None
        require(
            not self.channel.sums_only or isinstance(self.aggregation, SumRule),
            "aggregation",
            name,
            "this channel shows the sum alone: use a rule that is one (Mean, FixedDenominatorMean), and have clients"
            " clip themselves (local=ClientNoise)",
        )
        require(
            self.release.private == (noise == "central"),
            "privacy" if self.release.private else "release",
            None if self.release.private else type(self.release).__name__,
            "central noise and a client-level guarantee go together: release=CentralGaussian with privacy=ClientLevel"
            " and its noise=central",
        )
        require(
            self.local.noised == (noise in ("local", "distributed")),
            "privacy" if self.local.noised else "local",
            None if self.local.noised else type(self.local).__name__,
            "noise by clients goes together with its guarantee: local=ClientNoise with privacy=ClientLevel and its"
            " noise=local or distributed",
        )
        if self.local.noised or self.local.discrete:
            self._check_grid()
        require(
            self.local.private == record_level,
            "privacy" if self.local.private else "local",
            None if self.local.private else type(self.local).__name__,
            "DP-SGD and a record-level guarantee go together: local=DPSGD with privacy=RecordLevel",
        )
        require(
            isinstance(self.aggregation, FixedDenominatorMean) == self.local.noised,
            "aggregation",
            name,
            "messages that clients have noised are summed as they are: FixedDenominatorMean with local=ClientNoise",
        )
        require(
            noise != "central" or self.aggregation.bounded,
            "aggregation",
            name,
            "a client-level guarantee needs a rule with a proven sensitivity: use ClippedMean",
        )
        bands = self.privacy.bands if isinstance(self.privacy, ClientLevel) else None
        require(
            isinstance(self.release, BandedGaussian) == (bands is not None),
            "privacy.bands" if bands is None else "release",
            bands if bands is None else type(self.release).__name__,
            "correlated noise goes together with its matrix: release=BandedGaussian with privacy.bands",
        )
        require(
            bands is None or isinstance(self.channel, Plaintext),
            "channel",
            type(self.channel).__name__,
            "Plaintext with correlated noise: this channel's server keeps no noise from round to round",
        )
        adaptive = isinstance(self.privacy, ClientLevel) and self.privacy.adaptive
        require(
            isinstance(self.aggregation, AdaptiveClippedMean) == adaptive,
            "privacy.adaptive" if not adaptive else "aggregation",
            name if adaptive else adaptive,
            "an adapted clip goes together with its cost: aggregation=AdaptiveClippedMean with privacy.adaptive=true",
        )
        if isinstance(self.aggregation, ClippedMean):
            require(
                (self.aggregation.clip is None) == client_level,
                "aggregation.clip",
                self.aggregation.clip,
                "leave it null under a privacy plan, which carries the clip" if client_level else "a positive number",
            )

    def _check_grid(self) -> None:
        """Noise in a sum of integers has to be of integers.

        Raises:
            ConfigError: for rounded Gaussians, whose sum has no proof, or discrete ones without a grid that holds them.
        """
        grid, name = self.channel.grid, "discrete" if self.local.discrete else "gaussian"
        hint = "gaussian: this channel has no grid for it" if grid is None else "discrete: this channel sums integers"
        require(self.local.discrete == (grid is not None), "local.noise", name, hint)
        if isinstance(self.channel, SecAgg):
            exact = self.channel.bits <= 24 and math.frexp(self.channel.range)[0] == 0.5
            hint = "a power of two, and at most 24 bits: a client's update of float32 holds its noise exactly then"
            require(exact, "channel.range", self.channel.range, hint)

    def check(self, model: nn.Module, layout: Layout) -> None:
        """Refuse a model that these stations can't train, or whose guarantee would leak beside the noise.

        Raises:
            ConfigError: naming what would be right.
        """
        self.local.check(model)
        if self.privacy is not None and layout.buffers:
            # DP-SGD noises gradients, not buffers; and a noised running variance turns negative.
            why = f"a guarantee covers parameters, but {layout.buffers[0]} is a buffer made of data: use GroupNorm"
            raise ConfigError("model", type(model).__name__, why)

    def bind(self, facts: Facts, size: int) -> Plan | None:
        """The privacy plan for a federation, ``None`` without a guarantee.

        Args:
            size: length of an update.

        Raises:
            ConfigError: if the federation contradicts the guarantee.
        """
        if self.privacy is None:
            return None
        try:
            plan = self.privacy.bind(facts)
        except ConfigError as error:
            # These are the federation's fields, everything else is the plan's own.
            limits = ("max_participations", "min_separation")
            theirs = error.field in ("rounds", "sampling", "participation", "dropout", *limits)
            raise error.under("federation" if theirs else "defense.privacy") from None
        if isinstance(plan, ClientPlan) and self.channel.grid is not None:
            return plan.on(Grid(self.channel.grid, size))
        return plan
