"""The leakage attacks of a run's rounds: on whom, through whose view, and what colluding clients add to it."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privbench.attacks.leakage.descent import SIDE_BY_SIDE
from privbench.benchmarks.experiment import Prepared
from privbench.benchmarks.federation.client import ClientSide, Job, compute
from privbench.benchmarks.federation.engine import Engine
from privbench.benchmarks.federation.loop import Round
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.update import Update
from privbench.benchmarks.federation.view import RoundView, View, collude, told
from privbench.benchmarks.measures.case import Case
from privbench.benchmarks.measures.leakage import Leakage, is_image
from privbench.benchmarks.measures.model_change import changes
from privbench.benchmarks.results.record import Record
from privbench.benchmarks.tasks.task import Split
from privbench.defenses.accounting.guarantee import redrawn

Row = dict[str, Any]

DISTRACTORS = 64
"""Other clients' records among which a victim's are identified, and the first that ``other_image`` is drawn from."""
PEERS = 32
"""At most so many other clients' records of each label in a victim's batch stand for public data of the class."""


@dataclass(frozen=True)
class Target:
    """One attack: on one client's update, by one adversary.

    Args:
        measure: which attack.
        view: of the adversary, before anybody joins it.
        adversary: its name, colluders included.
        colluders: clients who hand over their updates.
        round, client: what is attacked.
        truth: the records behind it.
        distractors: other clients' records.
        generator: the attack's.
        used: indices of all records that some update of the attacked rounds came from; ``None``: not known.
    """

    measure: Leakage
    view: View
    adversary: str
    colluders: tuple[int, ...]
    round: int
    client: int
    truth: Split
    distractors: Split
    generator: torch.Generator
    used: Tensor | None = None


def attack(side: ClientSide, targets: list[Target]) -> list[tuple[list[Row], dict[str, Any]]]:
    """Runs in a worker: a colluder computes its update anew, which the coordinating process then never holds."""
    cases = []
    for t in targets:
        view, peers = join(side, t) if t.colluders else t.view, _peers(side, t.client, t.truth.y, t.used)
        strangers = partial(_others, side, t.client, DISTRACTORS)
        cases.append(Case(view, t.round, t.client, t.truth, t.generator, t.distractors, peers, strangers))
    found = targets[0].measure.measure_several(cases)
    named = {"features": np.array(side.spec.features)} if side.spec.features else {}
    return [(rows, {**arrays, **named} if arrays else {}) for rows, arrays in found]


def join(side: ClientSide, target: Target) -> View:
    """The target's view with what its colluders sent in the rounds that the attack looks at.

    Where the victim's own update is readable they have nothing to add.
    """
    window = target.measure.window(target.round)
    seen = [r for r in target.view.rounds if r.round in window and target.client not in r.updates]
    own = {r.round: {c: _anew(side, r, c) for c in target.colluders if c in (r.participants or ())} for r in seen}
    return collude(target.view, own, target.colluders)


def _anew(side: ClientSide, seen: RoundView, client: int) -> Update:
    # Its update, from the model that this client received; its random streams have names.
    model = seen.received.get(client, seen.sent)
    if model is None:
        raise ValueError(f"no model of round {seen.round} in the view that client {client} joins")
    together = {c: seen.received.get(c, seen.sent) for c in seen.participants or () if c in side.attackers}
    return compute(side, Job(client, seen.round, side.channel.trains, model, colluders=together))


def colluders(number: int, victim: int, clients: int) -> tuple[int, ...]:
    """The last ``number`` clients beside the victim, so the poisoner's first of all."""
    others = [c for c in range(clients) if c != victim]
    return tuple(others[len(others) - number :])


def attacks(
    prepared: Prepared, leakage: Leakage, finished: Round, side: ClientSide, engine: Engine, record: Record
) -> Iterator[Row]:
    """Attack every victim with every adversary's view; the engine's workers share the attacks."""
    federation, seed, number = prepared.federation, prepared.experiment.seed, finished.round
    targets: list[Target] = []
    seen = finished.views["participant"].rounds[-1]
    tried = Counter(entry["round"] for entry in finished.state.ledger)
    own = [_used(side, c, _took_part(finished, c, leakage), tried) for c in range(federation.clients)]
    used = torch.cat(own).unique()
    for client in sorted(federation.watched):
        yield from changes(federation.layout, seen, client)
    for adversary, base, several in leakage.coalitions:
        view = told(finished.views[base], finished.views["participant"]) if several else finished.views[base]
        chosen = 0
        for client in sorted(federation.watched):
            truth = side.data.take(own[client])
            if len(truth) == 0:
                who = {"round": number, "client": client, "adversary": adversary}
                when = "" if len(leakage.window(number)) == 1 else "the rounds up to "
                reason = f"client {client} used no record in {when}round {number}"
                if client in seen.received:
                    reason = f"client {client} refused the model that was made for it in round {number}"
                name = "psnr_db" if is_image(view.public) else "mse"
                yield {"metric": name, **who, "value": None, "status": "not_applicable", "reason": reason}
                continue
            if leakage.most is not None and chosen >= leakage.most:
                continue
            chosen += 1
            # With or without colluders the attack begins alike: what differs is what they add.
            generator = stream(seed, f"leakage/{base}", number, client)
            others, joining = _others(side, client, 0, DISTRACTORS), colluders(several, client, federation.clients)
            targets.append(Target(leakage, view, adversary, joining, number, client, truth, others, generator, used))
    together = batches(targets)
    for batch, found in zip(together, engine.map(attack, together), strict=True):
        for target, (rows, arrays) in zip(batch, found, strict=True):
            yield from rows
            if arrays:
                who = re.sub(r"\W+", "_", target.adversary)
                record.artifact(f"leakage_r{target.round}_c{target.client}_{who}", arrays)


def batches(targets: list[Target]) -> list[list[Target]]:
    """Targets that one worker attacks at once: neighbours of one adversary, at most :data:`SIDE_BY_SIDE`.

    The division mustn't depend on the number of workers: side by side, the last bits of a number do on who else is
    there.
    """
    found: list[list[Target]] = []
    for target in targets:
        if found and len(found[-1]) < SIDE_BY_SIDE and found[-1][0].adversary == target.adversary:
            found[-1].append(target)
        else:
            found.append([target])
    return found


def _took_part(finished: Round, client: int, leakage: Leakage) -> list[int]:
    """The rounds that an attack on ``client`` looks at and in which it took part."""
    window = leakage.window(finished.round)
    seen = finished.views["network"].rounds
    return [r.round for r in seen if r.round in window and client in (r.participants or ())]


def _used(side: ClientSide, client: int, rounds: list[int], tried: Mapping[int, int]) -> Tensor:
    """Indices of the records behind a client's updates: those that its local steps drew in the last attempt."""
    share = side.shares[client]
    if side.local.private and side.plan is not None and side.plan.unit == "patient":
        return share  # steps draw patients, and of each other records every time
    drawn = [torch.zeros(0, dtype=torch.int64)]
    for number in rounds:
        attempt = redrawn(side.plan, tried.get(number, 1))
        drawn += side.local.batches(len(share), side.work, stream(side.seed, "batches", number, client, attempt))
    return share[torch.cat(drawn).unique()]


def _others(side: ClientSide, client: int, first: int, count: int) -> Split:
    """Other clients' records, ``count`` of them from ``first`` on in a random order."""
    return side.data.take(_drawn(side, client, "distractors")[first : first + count])


def _peers(side: ClientSide, client: int, labels: Tensor, used: Tensor | None) -> Split:
    """Other clients' records of each of ``labels``: of those that nothing attacked came from, if there is one.

    An attack on the mean of a cohort reconstructs other clients' records too, which then say nothing of the class.
    """
    others = _drawn(side, client, "peers")
    apart = others if used is None else others[~torch.isin(others, used)]
    chosen = []
    for c in labels.unique():
        own = apart[side.data.y[apart] == c]
        chosen.append((own if len(own) else others[side.data.y[others] == c])[:PEERS])
    return side.data.take(torch.cat(chosen))


def _drawn(side: ClientSide, client: int, purpose: str) -> Tensor:
    """Indices of all other clients' records, in a random order."""
    mine = torch.zeros(len(side.data), dtype=torch.bool)
    mine[side.shares[client]] = True
    others = torch.nonzero(~mine).squeeze(1)
    return others[torch.randperm(len(others), generator=stream(side.seed, purpose, client=client))]
