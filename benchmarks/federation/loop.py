"""The only training loop: a federation's rounds, one after another."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privbench.benchmarks.federation.attempts import Attempts, HistoryMissing
from privbench.benchmarks.federation.client import ClientSide, Job, take_turn
from privbench.benchmarks.federation.engine import Engine
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.sampling import answering, drawn
from privbench.benchmarks.federation.server import Released, RoundContext, ServerState
from privbench.benchmarks.federation.spans import span
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.usage import Meter, RoundUsage
from privbench.benchmarks.federation.view import RoundView, View
from privbench.defenses.accounting.guarantee import fresh, redrawn
from privbench.defenses.aggregation import Diverged
from privbench.defenses.channel import ChannelLost, Message

if TYPE_CHECKING:
    from privbench.benchmarks.federation.federation import Federation

ATTEMPTS = 2
"""At a round whose channel is lost; then the run stops, with the reason."""


class BudgetSpent(RuntimeError):
    """Attempts that were cut off took the budget of a round that was to come, and the run's end isn't measured."""


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
        attempts: at the round that isn't finished.
    """

    federation: "Federation"
    side: ClientSide
    engine: Engine
    attempts: Attempts

    def rounds(self, state: ServerState) -> Iterator[Round]:
        """As :meth:`Federation.run <privbench.benchmarks.federation.federation.Federation.run>`."""
        self._check_history(state)
        while state.round < self._last(state):
            yield self._round(state)

    def _last(self, state: ServerState, lost: int = 0) -> int:
        """The last round: the federation's, or the one after which the privacy budget allows no other.

        Args:
            lost: attempts at the next round that released nothing, and count like the ledger's.
        """
        plan, rounds = self.federation.plan, self.federation.settings.rounds
        within = plan.affordable(len(state.ledger) - state.round + lost) if plan else None
        return rounds if within is None else min(rounds, within)

    def _begun(self, number: int) -> list[tuple[int, ...]]:
        """Whom each attempt at the next round has invited that an earlier process began, the first one first.

        One whose release the channel has stored is the last of them, and isn't lost.
        """
        counted = self.side.channel.begun(number)
        if counted is None:
            return self.attempts.begun(number) if fresh(self.federation.plan) else []
        return [self._drawn(number, (), attempt) for attempt in range(1, counted + 1)]

    def _drawn(self, number: int, spent: Collection[int], attempt: int) -> tuple[int, ...]:
        return drawn(self.federation, number, spent, redrawn(self.federation.plan, attempt))

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
            self.engine.share("received", state.model)
            tried = self._begun(state.round + 1)
            context, here = self._context(state, tried[:-1])
        outcome = channel.stored(state, context) if tried else None
        if outcome is None and self._last(state, len(tried)) <= state.round:
            why = f"attempts at round {context.round} that were cut off took what was left of the privacy budget"
            raise BudgetSpent(f"{why}; rerun=all starts anew")
        for attempt in range(ATTEMPTS) if outcome is None else ():
            if tried:
                context, here = self._context(state, tried)
            tried.append(context.invited)
            self._keep(context)
            try:
                messages = self._messages(here, context, state, meter)
                outcome = channel.server(messages, federation.pipeline, state, context)
                break
            except ChannelLost:
                # What was lost may have released, and is charged; another attempt has to be affordable too.
                if attempt + 1 == ATTEMPTS or self._last(state, len(tried)) <= state.round:
                    raise
                channel.recover(state)
        assert outcome is not None
        released, views = outcome
        if not bool(torch.isfinite(released.model).all()):
            raise Diverged(f"the model holds NaN or infinity after round {context.round}")
        state.invited = self._invited(state, tried)
        state.model, state.round = released.model, context.round
        state.averaged(federation.settings.averaging)
        answered = here if released.cohort is None else released.cohort
        state.cohorts.append(len(answered))
        if federation.plan:
            state.ledger += [federation.plan.charge(context.round, cohort) for cohort in tried]
        seen = self._remember(state, views)
        last = context.round >= self._last(state)
        return Round(context.round, state, context.invited, answered, seen, released, meter.read(), last)

    def _keep(self, context: RoundContext) -> None:
        """Count an attempt on disk, before any of it can leave, where another one would be another release."""
        if fresh(self.federation.plan) and self.side.channel.begun(context.round) is None:
            self.attempts.begin(context.round, context.invited)

    def _invited(self, state: ServerState, tried: list[tuple[int, ...]]) -> dict[int, list[int]]:
        """Rounds that each client was invited to, with attempts at the next one; nobody's where none is limited."""
        if not self.federation.facts.limited:
            return {}
        now = [c for cohort in tried for c in cohort]
        return {c: state.invited.get(c, []) + [state.round + 1] * now.count(c) for c in {*state.invited, *now}}

    def _context(self, state: ServerState, tried: list[tuple[int, ...]]) -> tuple[RoundContext, tuple[int, ...]]:
        """That of the next attempt, after those that were ``tried``, and who of its cohort answers."""
        f, number, attempt = self.federation, state.round + 1, len(tried) + 1
        spent = f.facts.spent(self._invited(state, tried), number)
        invited = self._drawn(number, spent, attempt)
        here = answering(invited, f.settings.dropout, stream(f.seed, "dropout", number))
        context = RoundContext(
            seed=f.seed,
            round=number,
            invited=invited,
            expected=f.facts.expected,
            weighting=f.weighting,
            layout=f.layout,
            kind=f.settings.local.share,
            learning_rate=f.settings.local.learning_rate,
            plan=f.plan,
            watched=f.watched,
            crafted=self._crafted(state.model, here, number),
            attempt=redrawn(f.plan, attempt),
        )
        return context, here

    def _messages(
        self, here: tuple[int, ...], context: RoundContext, state: ServerState, meter: Meter
    ) -> Iterator[Message]:
        """The last phase's messages: honest clients first, in order, then the poisoner's."""
        channel, number = self.side.channel, context.round

        def job(client: int, phase: str, inbox: Any, own: dict[str, Any]) -> Job:
            return Job(client, number, phase, context.crafted.get(client), inbox, own, attempt=context.attempt)

        order = sorted(here, key=lambda c: (c in self.federation.attackers, c))
        jobs = [job(c, channel.phases[0], number, state.clients.get(c, {})) for c in order]
        for phase, following in pairwise(channel.phases):
            kept: dict[int, dict[str, Any]] = {}
            # A channel that sums updates in one phase and goes on in another takes them one by one.
            inbox = channel.relay(phase, meter.waiting(_keeping(self._phase(jobs, context), kept)), state)
            jobs = [job(c, following, inbox[c], mine) for c, mine in kept.items() if c in inbox]
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
