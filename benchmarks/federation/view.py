"""What an adversary sees. A leakage attack gets a :class:`View` and nothing else."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from privbench.benchmarks.federation.update import Kind, Layout, Update

if TYPE_CHECKING:
    from privbench.benchmarks.federation.settings import LocalWork

Adversary = Literal["server_operator", "active_operator", "network", "participant", "model_recipient"]
ADVERSARIES: tuple[Adversary, ...] = ("server_operator", "active_operator", "network", "participant", "model_recipient")


@dataclass(frozen=True)
class Known:
    """What is published of the clipping and noise on an observation.

    Args:
        clip: the L2 bound; of a record's gradient where ``step_noise_std`` is given, else of a client's vector.
        step_noise_std: standard deviation of noise on each coordinate of every local step's mean gradient.
        noise_std: standard deviation of noise on each coordinate of the vector as observed.
        pruned: entries that are exactly 0 were pruned by the client, and say nothing.
    """

    clip: float | None = None
    step_noise_std: float = 0.0
    noise_std: float = 0.0
    pruned: bool = False


def unprotected(source: str, client: int) -> Known:
    """What is published without a privacy plan: there is no clipping and no noise."""
    return Known()


def all_of_them(records: int) -> int:
    """What local steps draw of so many records, unless something else is published."""
    return records


@dataclass(frozen=True)
class Mixture:
    """How updates become the aggregate, where it is a published weighted mean: ``sum_c w_c clip(u_c) / W``.

    Weights by records presume that record counts are public, as they are where clients enrol with them.

    Args:
        weights: ``weights[c]`` is client c's, >= 0.
        normaliser: W where it is the same in every round; ``None`` is the summed weights of those who took part.
        clip: the L2 bound on each client's whole vector; ``None`` for none.
    """

    weights: tuple[float, ...]
    normaliser: float | None = None
    clip: float | None = None

    def total(self, clients: Collection[int]) -> float:
        """The summed weights of ``clients``."""
        return sum(self.weights[c] for c in clients)

    def others(self, mean: Tensor, participants: Collection[int], own: Mapping[int, Tensor]) -> Tensor | None:
        """The mean over participants without those whose vectors are known.

        Args:
            mean: the aggregate or its leading entries, ``(p,)``.
            participants: who is behind it, those in ``own`` included.
            own: whole vectors by client, each at least ``(p,)``.

        Returns:
            ``(p,)`` float64, ``None`` where nobody of any weight is left.
        """
        left = self.total([c for c in participants if c not in own])
        if left <= 0:
            return None
        rest = mean.double() * (self.normaliser or self.total(participants))
        for client, vector in own.items():
            rest -= vector[: len(mean)].double() * (self.weights[client] * self._factor(vector))
        return rest / left

    def scale(self, participants: Collection[int], own: Collection[int] = ()) -> float:
        """By how much :meth:`others` multiplies noise on the mean."""
        left = self.total([c for c in participants if c not in own])
        return (self.normaliser or self.total(participants)) / left

    def _factor(self, vector: Tensor) -> float:
        return 1.0 if self.clip is None else min(1.0, self.clip / max(float(vector.double().norm()), 1e-12))


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
        visited: ``visited(records)`` is how many of them its local steps draw, or are expected to.
        server: the server optimiser.
        work: the clients' local work, ``None`` where it isn't published.
        known: ``known(source, client)`` is what the federation publishes of the protection on what an adversary
            observes of a client: its ``update``, the ``aggregate`` or the ``release``.
        records: training records by client, as enrolled; empty where they aren't public.
        mixture: how updates become the aggregate; ``None`` where that is no weighted mean.
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
    visited: Callable[[int], int] = all_of_them
    server: Any = None
    work: "LocalWork | None" = None
    known: Callable[[str, int], Known] = unprotected
    records: tuple[int, ...] = ()
    mixture: Mixture | None = None


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


def by_adversary(full: RoundView, models: bool = True) -> dict[str, RoundView]:
    """Each adversary's view of a round.

    Args:
        full: what there is to be seen.
        models: the server's operator reads the models that go out; otherwise clients and recipients alone do, but for
            the first, which everybody knows.
    """
    operator = full if models else replace(full, sent=full.sent if full.round == 1 else None, released=None)
    # Whoever stores or trains the model sees it before and after; a participant as well as a recipient.
    outside = RoundView(full.round, sent=full.sent, released=full.released)
    # A participant also sees the model that was made for it, if one was; the view holds those of all of them.
    inside = replace(outside, received=full.received)
    took_part, sizes, seconds = operator.participants, operator.sizes, operator.seconds
    network = RoundView(operator.round, participants=took_part, sizes=sizes, seconds=seconds)
    return {
        "server_operator": operator,
        "active_operator": operator,
        "network": network,
        "participant": inside,
        "model_recipient": outside,
    }


@dataclass(frozen=True)
class View:
    """All that ``adversary`` has seen so far, oldest round first."""

    adversary: str
    public: Public
    rounds: tuple[RoundView, ...] = ()

    def at(self, round: int) -> RoundView | None:
        """The view of one round, ``None`` where the adversary saw nothing of it."""
        return next((r for r in self.rounds if r.round == round), None)


def told(view: View, participant: View) -> View:
    """``view`` with the models that a client tells: it is sent each one, whether or not it takes part in the round.

    Args:
        participant: what a client sees, of the same rounds.
    """

    def fill(seen: RoundView) -> RoundView:
        known = participant.at(seen.round)
        if known is None:
            return seen
        sent = known.sent if seen.sent is None else seen.sent
        return replace(seen, sent=sent, released=known.released if seen.released is None else seen.released)

    return replace(view, rounds=tuple(fill(r) for r in view.rounds))


def collude(view: View, own: Mapping[int, Mapping[int, Update]], clients: Collection[int] | None = None) -> View:
    """``view`` joined by clients who hand over their updates, ``own[round][client]``.

    Their updates become readable; where only a mean over all participants was visible, they are subtracted from it, so
    that the aggregate is that of the others. Weights are the published ones, else the records that updates claim.
    Released models stay what they are: who attacks one subtracts what is readable.

    Args:
        clients: all who collude, also those that took part in no round; ``None``: those in ``own``.
    """

    def join(seen: RoundView) -> RoundView:
        mine = own.get(seen.round, {})
        rest = seen.aggregate
        if rest is not None and mine:
            left = rest.records - sum(u.records for u in mine.values())
            mean = _without(view.public.mixture, seen, rest, mine) if left > 0 else None
            rest = None if mean is None else replace(rest, vector=mean.to(rest.vector.dtype), records=left)
        return replace(seen, updates={**seen.updates, **mine}, aggregate=rest)

    every = {c for updates in own.values() for c in updates} if clients is None else set(clients)
    return replace(view, adversary=joined(view.adversary, len(every)), rounds=tuple(join(r) for r in view.rounds))


def _without(mixture: Mixture | None, seen: RoundView, mean: Update, own: Mapping[int, Update]) -> Tensor | None:
    if mixture is not None and seen.participants is not None:
        return mixture.others(mean.vector, seen.participants, {c: u.vector for c, u in own.items()})
    total = mean.vector.double() * mean.records - sum(u.vector.double() * u.records for u in own.values())
    return total / (mean.records - sum(u.records for u in own.values()))


def joined(adversary: str, clients: int) -> str:
    """The name of an adversary with whom so many clients collude: ``server_operator + 2 clients``."""
    return f"{adversary} + {clients} client{'s' if clients != 1 else ''}" if clients else adversary


COALITION = re.compile(r"(\w+)\s*\+\s*([1-9]\d{0,8})(?:\s+clients?)?")


def parted(name: str) -> tuple[Adversary, int] | None:
    """The adversary and the number of colluding clients in ``server_operator+2``; ``None`` where it isn't one."""
    found = COALITION.fullmatch(name.strip())
    base, clients = (found[1], int(found[2])) if found else (name, 0)
    return next(((a, clients) for a in ADVERSARIES if a == base), None)
