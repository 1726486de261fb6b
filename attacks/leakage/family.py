"""What all attacks by optimisation share: their settings, and how one or many targets become a problem."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from privbench.attacks.leakage.adam import Adam
from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, check
from privbench.attacks.leakage.descent import Compile
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.labels import Labels, fixed_labels, needs
from privbench.attacks.leakage.lbfgs import LBFGS
from privbench.attacks.leakage.objectives import Objective, Weighted
from privbench.attacks.leakage.observe import Observation
from privbench.attacks.leakage.optimise import Effort, Init, check_settings, chunks, reconstruct, valid_range
from privbench.attacks.leakage.priors import Prior, TotalVariation
from privbench.attacks.leakage.problem import Problem, TwoForms
from privbench.attacks.leakage.unrolled import ClientUpdate
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Public, View


@dataclass(frozen=True)
class Optimisation:
    """An attack by optimisation. What differs between the papers are a subclass' methods and defaults.

    Args:
        iterations: of the optimiser.
        restarts: from different random inputs; the best by the gradient objective is kept.
        learning_rate: of the optimiser, in standardised space.
        total_variation: weight of the prior; ``"auto"`` is the attack's own, which grows with published noise.
        labels: ``"inferred"`` from the last layer's gradient, ``"joint"`` with the records, or ``"known"``, which is
            declared side information.
        init: where descents start: ``normal``, ``uniform`` over valid pixels, or ``zeros``, the training mean.
        layer_weights: one a parameter tensor, for the distance; ``None``: all 1.
        unroll: follow the client's local steps instead of taking its update for an averaged gradient. ``"auto"``: where
            it took several, published how, and adds no noise to each; up to 32 steps.
        adapt: leave out what the client is known to have pruned, entries that are exactly 0; ``false`` is an attacker
            who takes them for gradients.
        compile: ``auto`` compiles descents long enough to be worth its start-up, ``always`` and ``never``.
    """

    iterations: int = 300
    restarts: int = 1
    learning_rate: float = 1.0
    total_variation: float | Literal["auto"] = "auto"
    labels: Labels = "inferred"
    init: Init = "normal"
    layer_weights: tuple[float, ...] | None = None
    unroll: bool | Literal["auto"] = "auto"
    adapt: bool = True
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        check_settings(self.iterations, self.restarts, self.learning_rate, self.total_variation)
        sound = self.layer_weights is None or (min(self.layer_weights) >= 0 and max(self.layer_weights) > 0)
        require(sound, "layer_weights", self.layer_weights, "null, or numbers of 0 or more, not all 0")

    @property
    def needs(self) -> frozenset[str]:
        return needs(self.labels)

    def weight(self, public: Public, observation: Observation) -> float:
        """The weight of total variation used against this observation."""
        raise NotImplementedError

    def objective(self, observation: Observation) -> Objective:
        """The distance used against this observation."""
        raise NotImplementedError

    def optimiser(self) -> Adam | LBFGS:
        """The descent."""
        raise NotImplementedError

    def box(self, public: Public) -> tuple[Tensor, Tensor] | None:
        """The values that candidates are held to."""
        return valid_range(public)

    def priors(self, public: Public, observation: Observation, gradient: ClientGradient) -> list[tuple[Prior, float]]:
        """Priors beside total variation, with their weights; the same priors for all targets of one model."""
        return []

    @property
    def group(self) -> float:
        """Weight of group consistency between restarts."""
        return 0.0

    def reconstruct(self, view: View, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """See :class:`~privbench.attacks.leakage.attack.Attack`."""
        (found,) = self.reconstruct_many(view, [observation], [generator])
        if isinstance(found, AttackFailed):
            raise found
        return found

    def reconstruct_many(
        self, view: View, observations: Sequence[Observation], generators: Sequence[torch.Generator]
    ) -> list[Reconstruction | AttackFailed]:
        """As :meth:`reconstruct` for several targets, of which those with one model and one size run side by side.

        Their numbers can differ in the last bits from those of :meth:`reconstruct`, and after many iterations visibly.
        """
        results: dict[int, Reconstruction | AttackFailed] = {}
        sound: list[int] = []
        for k, observation in enumerate(observations):
            try:
                check(view, observation)
                sound.append(k)
            except AttackFailed as failure:
                results[k] = failure
        for group in _groups(observations, sound):
            for part in chunks(len(group), self.restarts):
                own = [group[i] for i in part]
                found = self._together(view.public, [observations[k] for k in own], [generators[k] for k in own])
                results |= dict(zip(own, found, strict=True))
        return [results[k] for k in range(len(observations))]

    def _together(
        self, public: Public, observations: list[Observation], generators: list[torch.Generator]
    ) -> list[Reconstruction | AttackFailed]:
        gradient = ClientGradient(public, observations[0].model)
        labels: list[Tensor | None] = []
        more: list[list[tuple[Prior, float]]] = []
        results: dict[int, Reconstruction | AttackFailed] = {}
        for k, (observation, generator) in enumerate(zip(observations, generators, strict=True)):
            try:
                y = fixed_labels(self.labels, public, observation, generator)
                more.append(self.priors(public, observation, gradient))
                labels.append(y)
            except AttackFailed as failure:
                results[k] = failure
        left = [k for k in range(len(observations)) if k not in results]
        if left:
            part = [observations[k] for k in left]
            try:
                problem = Problem(
                    self._followed(public, part[0], gradient),
                    torch.stack([o.gradient for o in part]),
                    self._weighted(public, part),
                    None if labels[0] is None else torch.stack([y for y in labels if y is not None]),
                    self._weights(public, part, more),
                    self.box(public),
                    self.group if self.restarts > 1 else 0.0,
                )
                effort, draws = Effort(self.restarts, self.init, self.compile), [generators[k] for k in left]
                found = reconstruct(public, problem, self.optimiser(), part[0].records, effort, draws)
            except AttackFailed as failure:
                found = [failure] * len(left)
            results |= dict(zip(left, found, strict=True))
        return [results[k] for k in range(len(observations))]

    def _followed(self, public: Public, observation: Observation, gradient: ClientGradient) -> TwoForms:
        several = observation.steps > 1 and public.kind == "update" and public.work is not None
        single = observation.source == "update" or observation.exact
        quiet = not observation.known.step_noise_std and observation.steps <= 32
        wanted = several and single and quiet if self.unroll == "auto" else self.unroll and several
        return ClientUpdate(gradient, public.work) if wanted and public.work is not None else gradient

    def _weighted(self, public: Public, observations: list[Observation]) -> Objective:
        layout, target = public.layout, observations[0].gradient
        base, weights = self.objective(observations[0]), None
        if self.layer_weights is not None:
            sizes = [torch.Size(s).numel() for s in layout.shapes[: layout.parameters]]
            if len(sizes) != len(self.layer_weights):
                raise AttackFailed(f"layer_weights has {len(self.layer_weights)} entries for {len(sizes)} tensors")
            each = zip(sizes, self.layer_weights, strict=True)
            weights = torch.cat([torch.full((n,), w) for n, w in each]).to(target)
        if observations[0].known.pruned and self.adapt:
            # A mask of one target only: `_alike` puts pruned ones apart.
            mask = (target != 0).to(target)
            weights = mask if weights is None else weights * mask
        return base if weights is None else Weighted(base, weights)

    def _weights(
        self, public: Public, observations: list[Observation], more: list[list[tuple[Prior, float]]]
    ) -> tuple[tuple[Prior, Tensor], ...]:
        like = observations[0].gradient
        variation = [self.weight(public, o) for o in observations]
        found: list[tuple[Prior, Tensor]] = [(TotalVariation(), like.new_tensor(variation))] if any(variation) else []
        for k, (prior, _) in enumerate(more[0]):
            found.append((prior, like.new_tensor([each[k][1] for each in more])))
        return tuple(found)


def _groups(observations: Sequence[Observation], indices: list[int]) -> list[list[int]]:
    """Those that one problem can hold together."""
    groups: list[list[int]] = []
    for k in indices:
        home = next((g for g in groups if _alike(observations[g[0]], observations[k])), None)
        if home is None:
            groups.append([k])
        else:
            home.append(k)
    return groups


def _alike(a: Observation, b: Observation) -> bool:
    """Of one model, number of records and steps, and kind of protection; a mask or buffers are of one target only."""
    if any(o.known.pruned or (o.buffers is not None and o.buffers.numel() > 0) for o in (a, b)):
        return False
    kinds = [(o.records, o.steps, o.source, o.known.clip is None, o.known.step_noise_std > 0) for o in (a, b)]
    return kinds[0] == kinds[1] and torch.equal(a.model, b.model)
