"""Run one prepared experiment: train, measure, record."""

import copy
import hashlib
import math
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from privbench.benchmarks import earlier
from privbench.benchmarks.attacking import attacks
from privbench.benchmarks.experiment import Experiment, Prepared
from privbench.benchmarks.federation import spans
from privbench.benchmarks.federation.attempts import Attempts
from privbench.benchmarks.federation.client import ClientSide
from privbench.benchmarks.federation.engine import Engine
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.loop import Round
from privbench.benchmarks.federation.server import ServerState
from privbench.benchmarks.measures import cost, filtering, noise
from privbench.benchmarks.measures.inference import Scene
from privbench.benchmarks.measures.poisoning import of_group, triggered
from privbench.benchmarks.measures.trace import Trace
from privbench.benchmarks.progress import Progress
from privbench.benchmarks.rank import origin
from privbench.benchmarks.results.record import SCHEMA, Record, environment, revision, write_json
from privbench.defenses.accounting import ClientPlan
from privbench.defenses.accounting.statement import Subject, document
from privbench.defenses.accounting.wording import NO_ACCOUNTANT
from privbench.defenses.aggregation import Diverged

Status = Literal["complete", "failed", "diverged"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        status: as in its manifest.
        how: ``ran``, ``resumed``, or ``kept`` (it was there already).
        note: why it failed, or what is worth knowing of a kept run, or of what one took the place of.
    """

    status: Status
    how: Literal["ran", "resumed", "kept"]
    note: str | None = None


def run(prepared: Prepared, choices: dict[str, Any], progress: Progress, parallel_jobs: int = 1) -> Outcome:
    """Do what is missing of a run. What goes wrong while it runs is recorded, not raised.

    Args:
        prepared: from :func:`~privbench.benchmarks.experiment.prepare`.
        choices: the configuration groups' choices, for the manifest.
        progress: told of every round.
        parallel_jobs: runs that share this machine's cores with this one.
    """
    record = Record(prepared.path)
    with record.locked():
        before = record.read()
        again = before is not None and earlier.again(prepared, before)
        if before and before["status"] in ("complete", "diverged") and not again:
            prepared.experiment.federation.engine.gather()
            return Outcome(before["status"], "kept", earlier.note(prepared, before))
        dropped = earlier.dropped(before) if before and again else None
        if before and dropped and earlier.owed(prepared, record):
            # Its releases can't be taken back, and a ledger that begins anew would not know of them.
            why = f"{dropped}, with noise that nobody can draw again: what it released counts; rerun=all starts anew"
            prepared.experiment.federation.engine.gather()
            record.refuse(before, f"HistoryMissing: {why}")
            return Outcome("failed", "kept", why)
        if again:
            record.forget()
        dropped = f"{dropped}: started anew" if dropped else None
        outcome = _run(prepared, record, choices, progress, parallel_jobs, dropped)
        return replace(outcome, note="; ".join(n for n in (dropped, outcome.note) if n) or None)


def _run(
    prepared: Prepared, record: Record, choices: dict[str, Any], progress: Progress, jobs: int, dropped: str | None
) -> Outcome:
    # One thread everywhere: the number of threads changes the order of summation, and with it the numbers.
    torch.set_num_threads(1)
    begin = time.perf_counter()
    profile = prepared.experiment.profile
    spans.switch(profile != "none")  # before any process is forked
    federation = prepared.federation
    workers = federation.workers(jobs)
    state = record.begin({**_manifest(prepared, choices, workers), "dropped": dropped}) or federation.start()
    trace = Trace(record.folder / "trace.json", state.round) if profile == "trace" else None
    how: Literal["ran", "resumed"] = "resumed" if state.round else "ran"
    model = copy.deepcopy(prepared.model).to(federation.device)
    session = engine = None
    over = False
    try:
        federation.settle(state)
        session = federation.session(state, prepared.id, record.path / "artifacts" / "attestation", workers)
        side = federation.client_side(session)
        settings, apart = federation.settings.engine, federation.defense.channel.apart
        source = partial(origin, prepared, side, state.per_sample)
        engine = settings.start(side, workers, federation.device, apart, source)
        progress.start(prepared, state.round)
        started = {"metric": "start_seconds", "round": state.round + 1, "value": time.perf_counter() - begin}
        for finished in federation.run(state, side, engine, Attempts(record.attempts)):
            rows = [started] if finished.round == started["round"] else []
            rows += _measure(prepared, finished, model, side, engine, record)
            _refuse_nonfinite(rows, finished.round)
            record.append(rows)
            if trace:
                trace.add(finished.round, finished.usage.spans)
            state = finished.state
            record.checkpoint(state)
            progress.round(finished.round, rows)
        assurance = session.assurance
        over = True
    except Diverged as error:
        over = True
        record.finish("diverged", str(error))
        return Outcome("diverged", how, str(error))
    except Exception as error:  # the record says why, and the other jobs of a sweep go on
        (record.path / "traceback.txt").write_text(traceback.format_exc())
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"
        reason = " ".join((reason, *getattr(error, "__notes__", ())))
        record.finish("failed", reason)
        return Outcome("failed", how, reason)
    finally:
        spans.switch(False)
        progress.stop()
        if engine:
            engine.close()
        if session:
            session.close(over)
    stopped = _stopped(federation, state)
    if federation.plan:
        _state(prepared, state, record)
    done = {"privacy": _statements(federation, state.ledger), "assurance": assurance, "stopped": stopped}
    done["per_sample"] = state.per_sample
    attacked = prepared.experiment.leakage.rounds if prepared.experiment.leakage else ()
    unreached = [r for r in attacked if r > state.round]
    if unreached:
        # Attempts that were lost took the budget of rounds that were to be attacked.
        reason = f"{stopped}, before round {unreached[0]} of leakage.rounds"
        record.finish("failed", reason, **done)
        return Outcome("failed", how, reason)
    record.finish("complete", **done)
    return Outcome("complete", how, stopped)


def _manifest(prepared: Prepared, choices: dict[str, Any], workers: int) -> dict[str, Any]:
    packages, machine = environment()
    privacy, local = prepared.experiment.defense.privacy, prepared.experiment.defense.local
    spec, channel = prepared.experiment.task.spec, prepared.experiment.defense.channel
    engine = prepared.experiment.federation.engine
    return {
        "schema": SCHEMA,
        "id": prepared.id,
        "settings": prepared.settings,
        "config": prepared.config,
        "seed": prepared.experiment.seed,
        "repeat": prepared.experiment.repeat,
        "choices": choices,
        "revision": revision(),
        "packages": packages,
        "machine": {**machine, "workers": workers, "device": str(prepared.federation.device)},
        # Until the run is complete, nothing is assured; what is then, evidence shows.
        "assurance": "none",
        "isolation": channel.isolation if channel.apart else engine.isolation(workers),
        "reproducible": privacy is None or privacy.noise_source == "seeded",
        # What is changed on the client without a guarantee: no epsilon is stated, and the report says why.
        "heuristic": type(local).__name__ if local.heuristic else None,
        "rounds": prepared.experiment.federation.rounds,
        "clients": prepared.federation.clients,
        "classes": len(spec.classes),
        "training_records": len(prepared.experiment.task.raw.train),
        "parameters": prepared.federation.layout.trainable,
        "canaries": prepared.federation.planted.stated if prepared.federation.planted else None,
        "privacy": None,
        "poisoner": _poisoner(prepared),
        # Of the initial model: a run that starts from another's says which.
        "started_with": hashlib.sha256(prepared.federation.start().model.numpy().astype("<f4").tobytes()).hexdigest(),
        # How clipped gradients are computed: chosen by a measurement, and the ways differ in rounding.
        "per_sample": local.chosen,
    }


def _poisoner(prepared: Prepared) -> dict[str, Any] | None:
    """Whose clients they are, what they ask to know beyond their own, and what of it they get here."""
    poisoner, federation = prepared.experiment.poisoning, prepared.federation
    if poisoner is None:
        return None
    trigger, spec = prepared.experiment.task.bound_trigger, prepared.experiment.task.spec
    hidden = set() if federation.reads_updates else {"honest_updates"}
    return {
        "clients": sorted(federation.attackers),
        "asks": sorted(poisoner.asks),
        "knows": sorted(poisoner.asks - hidden),
        "trigger_share": trigger.share(spec) if poisoner.triggered and trigger is not None else None,
    }


def _stopped(federation: Federation, state: ServerState) -> str | None:
    """Why there are fewer rounds than asked for."""
    rounds = federation.settings.rounds
    return (
        f"stopped after round {state.round} of {rounds}: the privacy budget is spent" if state.round < rounds else None
    )


def _statements(federation: Federation, ledger: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return federation.plan.statements(ledger) if federation.plan else None


def _state(prepared: Prepared, state: ServerState, record: Record) -> None:
    """Write what the run guarantees for a third party (``privbench dp verify``), and the opening of its digests."""
    model = hashlib.sha256(state.model.numpy().astype("<f4").tobytes()).hexdigest()
    subject = Subject(prepared.id, revision() or {}, model)
    written = document(prepared.federation.plan, state.ledger, state.cohorts, subject)
    for name, content in (("statement", written.statement), ("opening", written.opening)):
        write_json(record.folder / f"privacy_{name}.json", content)


def _measure(
    prepared: Prepared, finished: Round, model: nn.Module, side: ClientSide, engine: Engine, record: Record
) -> Iterator[Row]:
    """All metric rows of one round."""
    settings, federation, number = prepared.experiment.federation, prepared.federation, finished.round
    last = finished.last
    yield from cost.rows(
        finished, settings.engine.counted(settings.engine.processes(federation.clients, settings.workers, 1))
    )
    yield {"metric": "participants", "round": number, "value": len(finished.answered)}
    yield {"metric": "dropped", "round": number, "value": len(finished.invited) - len(finished.answered)}
    for name, value in finished.released.costs.items():
        yield {"metric": name, "round": number, "value": value}
    if (refused := finished.released.refused) is not None:
        yield {"metric": "refused", "round": number, "value": sum(refused.values())}
        for name, value in sorted(refused.items()):
            yield {"metric": f"refused_{name}", "round": number, "value": value}
    yield from filtering.rows(finished, federation.attackers)
    if last or number % settings.evaluate_every == 0:
        average = finished.state.average
        federation.layout.write(finished.released.model if average is None else average, model)
        yield from _utility(prepared.experiment, model, number)
    if prepared.experiment.leakage and number in prepared.experiment.leakage.rounds:
        yield from attacks(prepared, prepared.experiment.leakage, finished, side, engine, record)
    if prepared.experiment.inference:
        yield from prepared.experiment.inference.rows(Scene(prepared, finished, side, engine, record))
    if last and isinstance(federation.plan, ClientPlan):
        defense, seed = prepared.experiment.defense, prepared.experiment.seed
        yield from noise.rows(defense, federation.plan, federation.layout, seed, number)
    if last:
        yield from of_group(federation, finished)
    if last and federation.plan:
        for statement in federation.plan.statements(finished.state.ledger):
            # Noise whose loss an accountant can't calculate is no noise to it.
            lost = statement["accountant"] != NO_ACCOUNTANT
            none = f"no finite epsilon by {statement['accountant']}" if lost else "no guarantee against this adversary"
            yield {
                "metric": "epsilon",
                "round": number,
                "adversary": statement["adversary"],
                "value": statement["epsilon"],
                "unit": statement["unit"],
                "delta": statement["delta"],
                "adjacency": statement["adjacency"],
                # No setting here accounts for more clients or records than there are.
                "simulated_population": False,
                **({"status": "not_applicable", "reason": none} if statement["epsilon"] is None else {}),
            }


def _utility(experiment: Experiment, model: nn.Module, number: int) -> Iterator[Row]:
    for name, value in experiment.task.evaluate(model).items():
        yield {"metric": name, "round": number, "value": value}
    labels = experiment.task.data.test.y
    # What accuracy is worth: that of always naming the most frequent class.
    yield {"metric": "chance", "round": number, "value": float(labels.bincount().max()) / len(labels)}
    rates = triggered(experiment.task, model)
    if rates:
        # The same rate has two names: a success needs a poisoner, and its floor is the rate without one.
        rate = rates.pop("triggered_rate")
        backdoored = experiment.poisoning is not None and experiment.poisoning.triggered
        yield {"metric": "asr" if backdoored else "false_trigger_rate", "round": number, "value": rate}
    for name, value in rates.items():
        yield {"metric": name, "round": number, "value": value}


def _refuse_nonfinite(rows: list[Row], number: int) -> None:
    for row in rows:
        if isinstance(row["value"], float) and not math.isfinite(row["value"]):
            raise Diverged(f"{row['metric']} is {row['value']} after round {number}")
