"""From a view to a gradient: what an adversary can make of the round for one client."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from privbench.benchmarks.federation.server import ServerSGD
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.view import Known, Public, RoundView, View

Source = Literal["update", "aggregate", "release"]


@dataclass(frozen=True)
class Observation:
    """An estimate of a client's mean gradient.

    Args:
        gradient: ``(layout.trainable,)`` float32.
        model: ``(layout.size,)``, the model at which it was computed.
        records: how many records the adversary believes to be behind it. A release shows no count: there it is 1
            until the measure declares the batch size as side information.
        source: what it was derived from.
        exact: ``True`` for one client's single local step, where ``update = -learning_rate * gradient``; ``False``
            for an average over several local steps or a mixture of clients. Noise and clipping don't count here.
        steps: local steps that the gradient is averaged over.
        labels: ``(records,)`` int64, declared side information that no view holds; ``None`` otherwise.
        known: what is published of the clipping and noise on it.
    """

    gradient: Tensor
    model: Tensor
    records: int
    source: Source
    exact: bool
    steps: int
    labels: Tensor | None = None
    known: Known = field(default_factory=Known)


def observe(view: View, round: int, client: int) -> Observation | None:
    """The best estimate of ``client``'s gradient in ``round``.

    In this order: the client's own update; the aggregate, if the client is or may be among those behind it; the
    difference between the model sent and the model released, a mixture that the server's optimiser has scaled.

    Returns:
        ``None`` where the adversary has nothing of that client in that round.
    """
    seen = view.at(round)
    if seen is None or seen.sent is None:
        return None
    public = view.public
    # Where an operator made a model for this client, the gradient was taken there.
    model = seen.received.get(client, seen.sent)
    own = seen.updates.get(client)
    if own is not None:
        steps = public.local_steps(own.records)
        known = public.known("update", client)
        return Observation(_gradient(own, public, steps), model, own.records, "update", steps == 1, steps, known=known)
    if seen.participants is not None and client not in seen.participants:
        return None
    others = _hidden(seen)
    if seen.aggregate is not None:
        mixed = seen.aggregate
        steps = public.local_steps(max(1, mixed.records // len(others)) if others else mixed.records)
        exact = steps == 1 and others == (client,)
        known = public.known("aggregate", client)
        return Observation(
            _gradient(mixed, public, steps), model, mixed.records, "aggregate", exact, steps, known=known
        )
    if seen.released is not None:
        steps = public.local_steps(1) if public.kind == "update" else 1
        trainable = public.layout.trainable
        # An adaptive server's scaling can't be undone from one round; a plain learning rate can.
        scale = public.server.learning_rate if isinstance(public.server, ServerSGD) else 1.0
        moved = (seen.sent - seen.released)[:trainable] / (public.learning_rate * steps * scale)
        return Observation(moved, model, 1, "release", False, steps, known=public.known("release", client))
    return None


def _gradient(update: Update, public: Public, steps: int) -> Tensor:
    """Minus the update over the summed learning rates, ``(w_0 - w_T) / (lr T)``: exact for T = 1."""
    vector = update.vector[: public.layout.trainable]
    return vector if update.kind == "gradient" else -vector / (public.learning_rate * steps)


def _hidden(seen: RoundView) -> tuple[int, ...]:
    """Participants whose updates aren't readable one by one: colluders are subtracted from the aggregate."""
    return tuple(p for p in seen.participants or () if p not in seen.updates)
