"""The only training loop: a federation's rounds, one after another."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privbench.benchmarks.federation import engine as engines
from privbench.benchmarks.federation.client import ClientSide, Job, take_turn
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import answering, drawn
from privbench.benchmarks.federation.server import Released, RoundContext, ServerState
from privbench.benchmarks.federation.spans import span
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.usage import Meter, RoundUsage
from privbench.benchmarks.federation.view import RoundView, View
from privbench.defenses.aggregation import Diverged
from privbench.defenses.channel import ChannelLost, Message

if TYPE_CHECKING:
    from privbench.benchmarks.federation.federation import Federation

ATTEMPTS = 2
"""At a round whose channel is lost; then the run stops, with the reason."""


class HistoryMissing(RuntimeError):
    """A checkpoint without the privacy history of its rounds."""


@dataclass(frozen=True)
class Round:
    """What happened in one round.

    Args:
        round: from 1.
        state: the server's state after it.
        invited, answered: who was drawn, and who sent an update.
        views: each adversary's view up to this round: the rounds that it kept, and this one.
        released: what left the channel.
        usage: what it took.
        last: whether none comes after it.
    """

    round: int
    state: ServerState
    invited: tuple[int, ...]
    answered: tuple[int, ...]
    views: dict[str, View]
    released: Released
    usage: RoundUsage
    last: bool = False


@dataclass
class Loop:
    """The rounds of a federation.

    Args:
        federation: who trains what under which defense.
        side: what clients have, with the channel at work.
        engine: where clients run; it was made with ``side``.
    """

    federation: "Federation"
    side: ClientSide
    engine: engines.Engine

    def rounds(self, state: ServerState) -> Iterator[Round]:
        """As :meth:`Federation.run <privbench.benchmarks.federation.federation.Federation.run>`."""
        self._check_history(state)
        while state.round < self._last(state):
            yield self._round(state)

    def _last(self, state: ServerState) -> int:
        """The last round: the federation's, or the one after which the privacy budget allows no other."""
        rounds = self.federation.settings.rounds
        return min(rounds, state.round + left) if (left := self._left(state)) is not None else rounds

    def _left(self, state: ServerState) -> int | None:
        """How many attempts at a round the privacy budget still allows; ``None`` without a budget."""
        most = self.federation.plan.affordable if self.federation.plan else None
        return None if most is None else max(0, most - len(state.ledger))

    def _check_history(self, state: ServerState) -> None:
        """Refuse to go on from rounds whose privacy loss isn't known: no epsilon could be stated at the end."""
        charged = {entry["round"] for entry in state.ledger}
        missing = [n for n in range(1, state.round + 1) if n not in charged] if self.federation.plan else []
        if missing:
            why = f"the privacy history of round {missing[0]} is missing from the checkpoint: no epsilon can be stated"
            raise HistoryMissing(f"{why}; rerun=all starts anew")

    def _round(self, state: ServerState) -> Round:
        federation, channel = self.federation, self.side.channel
        meter = Meter()
        with span("distribution"):
            context, here = self._context(state)
            self.side.received.copy_(state.model)
        outcome = channel.stored(state, context)
        for attempt in range(ATTEMPTS) if outcome is None else ():
            try:
                messages = self._messages(here, context, state, meter)
                outcome = channel.server(messages, federation.pipeline, state, context)
                break
            except ChannelLost:
                # What was lost may have released, and is charged; another attempt has to be affordable too.
                left = self._left(state)
                if attempt + 1 == ATTEMPTS or (left is not None and attempt + 2 > left):
                    raise
                channel.recover(state)
        assert outcome is not None
        released, views = outcome
        if not bool(torch.isfinite(released.model).all()):
            raise Diverged(f"the model holds NaN or infinity after round {context.round}")
        state.model, state.round = released.model, context.round
        state.averaged(federation.settings.averaging)
        if federation.facts.limited:
            state.invited.update({c: [*state.invited.get(c, []), context.round] for c in context.invited})
        answered = here if released.cohort is None else released.cohort
        state.cohorts.append(len(answered))
        if federation.plan:
            state.ledger += [federation.plan.charge(context.round, context.invited) for _ in range(released.attempts)]
        seen = self._remember(state, views)
        last = context.round >= self._last(state)
        return Round(context.round, state, context.invited, answered, seen, released, meter.read(), last)

    def _context(self, state: ServerState) -> tuple[RoundContext, tuple[int, ...]]:
        """The next round's, and who of its cohort answers."""
        f, number = self.federation, state.round + 1
        spent = f.facts.spent(state.invited, number)
        invited = drawn(f, number, spent)
        here = answering(invited, f.settings.dropout, stream(f.seed, "dropout", number))
        context = RoundContext(
            seed=f.seed,
            round=number,
            invited=invited,
            expected=f.settings.participation * f.clients,
            weighting=f.weighting,
            layout=f.layout,
            kind=f.settings.local.share,
            learning_rate=f.settings.local.learning_rate,
            plan=f.plan,
            watched=f.watched,
            crafted=self._crafted(state.model, here, number),
        )
        return context, here

    def _messages(
        self, here: tuple[int, ...], context: RoundContext, state: ServerState, meter: Meter
    ) -> Iterator[Message]:
        """The last phase's messages: honest clients first, in order, then the poisoner's."""
        channel, number = self.side.channel, context.round
        jobs = [
            Job(c, number, channel.phases[0], context.crafted.get(c), number, state.clients.get(c, {}))
            for c in sorted(here, key=lambda c: (c in self.federation.attackers, c))
        ]
        for phase, following in pairwise(channel.phases):
            kept: dict[int, dict[str, Any]] = {}
            # A channel that sums updates in one phase and goes on in another takes them one by one.
            inbox = channel.relay(phase, meter.waiting(_keeping(self._phase(jobs, context), kept)), state)
            jobs = [
                Job(c, number, following, context.crafted.get(c), inbox[c], mine)
                for c, mine in kept.items()
                if c in inbox
            ]
        return meter.waiting(_remembering(self._phase(jobs, context), state))

    def _phase(self, jobs: list[Job], context: RoundContext) -> Iterator[Message]:
        engine, federation, patience = self.engine, self.federation, self.federation.settings.patience
        honest = [j for j in jobs if j.client not in federation.attackers]
        together = {j.client: j.model for j in jobs if j.client in federation.attackers}
        told = replace(context, crafted={})
        crooked = [replace(j, colluders=together, context=told) for j in jobs if j.client in together]
        if not federation.reads_updates:
            yield from engine.map(take_turn, chain(honest, crooked), patience)
            return
        # An attacker that reads others' updates crafts its own when theirs have come in.
        others: list[Update] = []
        for message in engine.map(take_turn, honest, patience):
            others.append(replace(message.payload, client=message.client))
            yield message
        yield from engine.map(take_turn, (replace(j, others=tuple(others)) for j in crooked), patience)

    def _crafted(self, model: Tensor, clients: tuple[int, ...], round: int) -> dict[int, Tensor]:
        """Models made for single clients; who isn't in it gets the round's like everybody."""
        if self.federation.crafting is not None and round not in self.federation.crafting:
            return {}
        made = ((c, self.federation.distribution.craft(model, c)) for c in clients)
        return {c: sent for c, sent in made if sent is not model}

    def _remember(self, state: ServerState, views: dict[str, RoundView]) -> dict[str, View]:
        public = self.federation.public
        seen = {name: View(name, public, (*state.views.get(name, ()), view)) for name, view in views.items()}
        if state.round in self.federation.keep:
            for name, view in views.items():
                state.views.setdefault(name, []).append(view)
        return seen


def _keeping(messages: Iterator[Message], kept: dict[int, dict[str, Any]]) -> Iterator[Message]:
    """The messages, and what each client keeps for the next phase."""
    for message in messages:
        kept[message.client] = message.state
        yield message


def _remembering(messages: Iterator[Message], state: ServerState) -> Iterator[Message]:
    """The messages, and what each client keeps for the next round."""
    for message in messages:
        if message.state:
            state.clients[message.client] = message.state
        yield message
