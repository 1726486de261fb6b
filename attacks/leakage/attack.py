"""What a gradient leakage attack is: a view and an observation made of it in, records out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from privbench.attacks.leakage.capabilities import missing
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.view import View


class AttackFailed(RuntimeError):
    """The attack has no result: what it was given is unusable, or its optimisation diverged.

    Args:
        reason: one sentence for the record.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Reconstruction:
    """What an attack believes the records were.

    Args:
        x: ``(B, *shape)``, standardised, in no particular order.
        y: ``(B,)`` int64, the labels used or inferred.
        objective: the gradient objective at ``x``, without the prior.
        restart: which restart ``x`` comes from: the one with the lowest objective, chosen without the truth.
        objectives: of all restarts; a diverged one has ``inf`` or ``nan``.
        candidates: all restarts, ``(R, B, *shape)``.
        engine: how it was computed, in words.
    """

    x: Tensor
    y: Tensor
    objective: float
    restart: int
    objectives: tuple[float, ...]
    candidates: Tensor
    engine: str = ""


class Attack(Protocol):
    """A gradient leakage attack. Settings are the fields of a dataclass."""

    @property
    def needs(self) -> frozenset[str]:
        """What the attack needs, by name, of :data:`~privbench.attacks.leakage.capabilities.CAPABILITIES`.

        ``"batch_size"`` (where the view doesn't show it) and ``"labels"`` are side information, declared in the record.
        """
        ...

    def reconstruct(self, view: View, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct ``observation.records`` records.

        Args:
            view: all that the adversary has seen.
            observation: :func:`~privbench.attacks.leakage.observe.observe` of that view.
            generator: the only source of randomness; a CPU generator.

        Raises:
            AttackFailed: where there is nothing usable to attack, or no restart ended with finite numbers.
        """
        ...


@runtime_checkable
class Several(Protocol):
    """An attack that takes on several targets at once."""

    def reconstruct_many(
        self, view: View, observations: Sequence[Observation], generators: Sequence[torch.Generator]
    ) -> "list[Reconstruction | AttackFailed]":
        """By observation what :meth:`Attack.reconstruct` returns, or why there is nothing.

        Args:
            view: one of theirs: they share what is public. What else an attack needs is in the observations.
            generators: one an observation.
        """
        ...


def check(view: View, observation: Observation, needs: frozenset[str] = frozenset()) -> None:
    """Refuse what no attack can use, and what lacks a capability that this one needs.

    Args:
        needs: the attack's.

    Raises:
        AttackFailed: for a gradient or model of the wrong size, with NaN or infinity, or a gradient that is all zero;
            and with the name of a capability that is missing.
    """
    layout = view.public.layout
    gradient, model = observation.gradient, observation.model
    if gradient.shape != (layout.trainable,):
        raise AttackFailed(f"the gradient has shape {tuple(gradient.shape)}, the model {layout.trainable} parameters")
    if model.shape != (layout.size,):
        raise AttackFailed(f"the model vector has shape {tuple(model.shape)}, its layout {layout.size} entries")
    if not torch.isfinite(gradient).all():
        raise AttackFailed("the gradient has NaN or infinite entries")
    if not torch.isfinite(model).all():
        raise AttackFailed("the model has NaN or infinite entries")
    if not gradient.any():
        raise AttackFailed("the gradient is zero")
    if observation.records < 1:
        raise AttackFailed(f"the observation stands for {observation.records} records")
    lacking = missing(needs, view, observation)
    if lacking:
        raise AttackFailed(f"{view.adversary} lacks {lacking}")


def choose(candidates: Tensor, labels: Tensor, objectives: Sequence[float], engine: str = "") -> Reconstruction:
    """The restart with the lowest gradient objective, among those that stayed finite.

    Args:
        candidates: ``(R, B, *shape)``.
        labels: ``(R, B)`` int64.
        objectives: R values.
        engine: for the result.

    Raises:
        AttackFailed: if every restart diverged.
    """
    values = torch.tensor(list(objectives), dtype=torch.float64)
    finite = torch.isfinite(candidates.flatten(1)).all(1).cpu() & torch.isfinite(values)
    if not finite.any():
        raise AttackFailed(f"none of {len(values)} restarts ended with finite numbers")
    best = int(torch.where(finite, values, torch.inf).argmin())
    return Reconstruction(
        candidates[best], labels[best], float(values[best]), best, tuple(float(v) for v in values), candidates, engine
    )
