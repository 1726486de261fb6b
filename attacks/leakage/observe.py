"""From a view to a gradient: what an adversary can make of the round for one client."""

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from privbench.benchmarks.federation.server import ServerSGD
from privbench.benchmarks.federation.update import Kind
from privbench.benchmarks.federation.view import Known, Mixture, Public, RoundView, View

Source = Literal["update", "aggregate", "release", "disaggregated"]


@dataclass(frozen=True)
class Observation:
    """An estimate of a client's mean gradient.

    Args:
        gradient: ``(layout.trainable,)`` float32.
        model: ``(layout.size,)``, the model at which it was computed.
        records: how many records the adversary believes to be behind it: those that local steps draw of the enrolled.
        source: what it was derived from.
        exact: ``True`` for one client's single local step, where ``update = -learning_rate * gradient``; ``False``
            for an average over several local steps or a mixture of clients. Noise, clipping and rounding don't count.
        steps: local steps that the gradient is averaged over.
        labels: ``(records,)`` int64, declared side information that no view holds; ``None`` otherwise.
        known: what is published of the clipping and noise on it.
        buffers: change of the model's float buffers that the client sent, ``(layout.size - layout.trainable,)``;
            ``None`` where its own isn't readable.
        counted: whether ``records`` is a claim that the view holds, or declared; a release without enrolled counts
            shows none, and ``records`` is 1 until the measure declares the batch size as side information.
    """

    gradient: Tensor
    model: Tensor
    records: int
    source: Source
    exact: bool
    steps: int
    labels: Tensor | None = None
    known: Known = field(default_factory=Known)
    buffers: Tensor | None = None
    counted: bool = True


def observe(view: View, round: int, client: int) -> Observation | None:
    """The best estimate of ``client``'s gradient in ``round``.

    In this order: the client's own update; the aggregate, if the client is or may be among those behind it; the
    difference between the model sent and the model released, from which colluders' updates are subtracted. With a
    single client left, that is its update up to float32 rounding.

    Returns:
        ``None`` where the adversary has nothing of that client in that round.
    """
    seen = view.at(round)
    if seen is None or seen.sent is None:
        return None
    public = view.public
    # Where an operator made a model for this client, the gradient was taken there; participants know their own alone.
    model = seen.sent if seen.participants is None else seen.received.get(client, seen.sent)
    own = seen.updates.get(client)
    if own is not None:
        steps = public.local_steps(own.records)
        known = public.known("update", client)
        gradient = per_step(own.vector[: public.layout.trainable], own.kind, public, steps)
        buffers = own.vector[public.layout.trainable :]
        behind = public.visited(own.records)
        return Observation(gradient, model, behind, "update", steps == 1, steps, known=known, buffers=buffers)
    if seen.participants is not None and client not in seen.participants:
        return None
    others = hidden(seen)
    if seen.aggregate is not None:
        mixed = seen.aggregate
        count = max(1, len(others))
        each = max(1, mixed.records // count)
        steps = public.local_steps(each)
        exact = steps == 1 and others == (client,)
        known = public.known("aggregate", client)
        if seen.updates and others and public.mixture is not None:
            # What colluders sent was taken off the mean, and their noise with it.
            known = replace(known, noise_std=noise_left(public, seen, client))
        gradient = per_step(mixed.vector[: public.layout.trainable], mixed.kind, public, steps)
        behind = mixed.records if public.visited(each) == each else count * public.visited(each)
        return Observation(gradient, model, behind, "aggregate", exact, steps, known=known)
    return _released(view, seen, client, model)


def _released(view: View, seen: RoundView, client: int, model: Tensor) -> Observation | None:
    public, left = view.public, hidden(seen)
    moved = step_of(view, seen)
    if moved is None:
        return None
    mean, known = moved.mean, public.known("release", client)
    if left and public.mixture is not None:
        rest = moved.others(public.mixture, seen)
        if rest is None:
            return None
        mean, known = rest, replace(known, noise_std=noise_left(public, seen, client))
    alone = left == (client,) and (public.mixture is not None or len(seen.participants or ()) == 1)
    if alone:
        # The client's own noise is its own, and the others' is gone with them.
        local = public.known("update", client)
        known = replace(known, clip=local.clip or known.clip, step_noise_std=local.step_noise_std)
    records, counted = enrolled(public, left or (client,))
    steps = public.local_steps(records) if alone and counted else public.local_steps(1)
    steps = steps if public.kind == "update" or alone else 1
    gradient = per_step(mean, public.kind, public, steps).to(model.dtype)
    exact = alone and counted and steps == 1 and moved.undone
    behind = sum(public.visited(public.records[c]) for c in left or (client,)) if counted else records
    return Observation(gradient, model, behind, "release", exact, steps, known=known, counted=counted)


@dataclass(frozen=True)
class Step:
    """What a release says of the aggregate behind it.

    Args:
        mean: the aggregate's parameters in the unit of what clients send, ``(layout.trainable,)`` float64.
        undone: whether the server optimiser was undone; else the step is as that optimiser made it.
    """

    mean: Tensor
    undone: bool

    def others(self, mixture: Mixture, seen: RoundView) -> Tensor | None:
        """The mean over participants whose updates aren't readable; ``None`` without any."""
        mine = {c: u.vector for c, u in seen.updates.items() if c in (seen.participants or ())}
        return mixture.others(self.mean, seen.participants or (), mine)


def step_of(view: View, seen: RoundView) -> Step | None:
    """From the difference of two models to the aggregate: a plain learning rate is undone, and momentum where the
    round before was seen too. An adaptive server's scaling can't be undone from one round.

    Returns:
        ``None`` where a model is not visible.
    """
    public = view.public
    moved = _moved(public, seen)
    if moved is None:
        return None
    server = public.server
    if not isinstance(server, ServerSGD):
        return Step(moved, False)
    moved = moved / server.learning_rate
    if not server.momentum or seen.round == 1:
        return Step(moved, True)
    before = view.at(seen.round - 1)
    last = None if before is None else _moved(public, before)
    return Step(moved, False) if last is None else Step(moved - server.momentum * last / server.learning_rate, True)


def _moved(public: Public, seen: RoundView) -> Tensor | None:
    """The model's way in the unit of what clients send."""
    if seen.sent is None or seen.released is None:
        return None
    moved = (seen.released.double() - seen.sent.double())[: public.layout.trainable]
    return moved if public.kind == "update" else -moved / public.learning_rate


def per_step(vector: Tensor, kind: Kind, public: Public, steps: int) -> Tensor:
    """An update as a gradient, ``(w_0 - w_T) / (lr T)``, which is exact for T = 1; a gradient as it is."""
    return vector if kind == "gradient" else -vector / (public.learning_rate * steps)


def noise_left(public: Public, seen: RoundView, client: int) -> float:
    """Standard deviation of the noise on the mean of hidden clients, in the unit of what clients send.

    Noise that clients add to their messages goes with those that are subtracted; central noise stays, and grows with
    what the rest is divided by.
    """
    mixture, left = public.mixture, hidden(seen)
    if mixture is None:
        return public.known("release", client).noise_std
    own = public.known("update", client).noise_std
    if own:
        return own * sum(mixture.weights[c] ** 2 for c in left) ** 0.5 / mixture.total(left)
    return public.known("release", client).noise_std * mixture.scale(seen.participants or (), seen.updates)


def hidden(seen: RoundView) -> tuple[int, ...]:
    """Participants whose updates aren't readable one by one: colluders' are."""
    return tuple(p for p in seen.participants or () if p not in seen.updates)


def enrolled(public: Public, clients: tuple[int, ...]) -> tuple[int, bool]:
    """The enrolled records of ``clients``; 1 where counts aren't public, and whether they are."""
    if not public.records:
        return 1, False
    return sum(public.records[c] for c in clients), True
