"""What an adversary sees. A leakage attack gets a :class:`View` and nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from privbench.benchmarks.federation.update import Kind, Layout, Update

Adversary = Literal["server_operator", "active_operator", "network", "participant", "model_recipient"]
ADVERSARIES: tuple[Adversary, ...] = ("server_operator", "active_operator", "network", "participant", "model_recipient")


@dataclass(frozen=True)
class Known:
    """What is published of the clipping and noise on an observation.

    Args:
        clip: the L2 bound; of a record's gradient where ``step_noise_std`` is given, else of a client's vector.
        step_noise_std: standard deviation of noise on each coordinate of every local step's mean gradient.
        noise_std: standard deviation of noise on each coordinate of the vector as observed.
    """

    clip: float | None = None
    step_noise_std: float = 0.0
    noise_std: float = 0.0


def unprotected(source: str, client: int) -> Known:
    """What is published without a privacy plan: there is no clipping and no noise."""
    return Known()


@dataclass(frozen=True)
class Public:
    """What everyone who takes part knows. It holds no training data.

    Args:
        model: the architecture, in the mode in which clients train; its weights mean nothing.
        layout: names and shapes of the vectors.
        loss: ``loss(model, (x, y)) -> scalar``, the mean over the batch.
        shape: shape of one input, e.g. ``(1, 28, 28)``.
        classes: number of classes.
        mean, std: standardisation, broadcastable to ``shape``: ``raw = x * std + mean``; raw pixels are in [0, 1].
        kind: whether clients send gradients or updates.
        learning_rate: of the local optimiser.
        local_steps: ``local_steps(records)`` is how many local steps a client with that many records takes.
        server: the server optimiser.
        known: ``known(source, client)`` is what the federation publishes of the protection on what an adversary
            observes of a client: its ``update``, the ``aggregate`` or the ``release``.
    """

    model: nn.Module
    layout: Layout
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
    shape: tuple[int, ...]
    classes: int
    mean: Tensor
    std: Tensor
    kind: Kind
    learning_rate: float
    local_steps: Callable[[int], int]
    server: Any = None
    known: Callable[[str, int], Known] = unprotected


@dataclass(frozen=True)
class RoundView:
    """One round through an adversary's eyes; what it cannot see is ``None`` or empty.

    Args:
        round: from 1.
        sent: the model that clients received, shape ``(layout.size,)``.
        received: models made for single clients by an active operator, by client, where they differ from ``sent``.
        released: the model after the round, shape ``(layout.size,)``.
        participants: who took part.
        updates: updates readable one by one, by client.
        aggregate: what the channel showed of the cohort as a whole.
        sizes: bytes sent, by client.
        seconds: time from invitation to message, by client.
    """

    round: int
    sent: Tensor | None = None
    released: Tensor | None = None
    participants: tuple[int, ...] | None = None
    updates: Mapping[int, Update] = field(default_factory=dict)
    aggregate: Update | None = None
    received: Mapping[int, Tensor] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """All that ``adversary`` has seen so far, oldest round first."""

    adversary: str
    public: Public
    rounds: tuple[RoundView, ...] = ()

    def at(self, round: int) -> RoundView | None:
        """The view of one round, ``None`` where the adversary saw nothing of it."""
        return next((r for r in self.rounds if r.round == round), None)


def collude(view: View, own: Mapping[int, Mapping[int, Update]]) -> View:
    """``view`` joined by clients who hand over their updates, ``own[round][client]``.

    Their updates become readable; where only a mean over all participants, weighted by records, was visible, they
    are subtracted from it, so that the aggregate is that of the others.
    """

    def join(seen: RoundView) -> RoundView:
        mine = own.get(seen.round, {})
        rest = seen.aggregate
        if rest is not None and mine:
            left = rest.records - sum(u.records for u in mine.values())
            if left > 0:
                total = rest.vector.double() * rest.records - sum(u.vector.double() * u.records for u in mine.values())
                rest = replace(rest, vector=(total / left).to(rest.vector.dtype), records=left)
            else:
                rest = None
        return replace(seen, updates={**seen.updates, **mine}, aggregate=rest)

    clients = sorted({c for updates in own.values() for c in updates})
    name = f"{view.adversary} + {len(clients)} clients"
    return replace(view, adversary=name, rounds=tuple(join(r) for r in view.rounds))
