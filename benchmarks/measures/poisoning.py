"""What a trigger does to a model."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.loop import Round
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.tasks.labelled import BATCH
from privbench.benchmarks.tasks.task import Task
from privbench.defenses.accounting.group import group_statement
from privbench.defenses.accounting.history import Uncovered
from privbench.defenses.accounting.plan import ClientPlan


@torch.no_grad()
def triggered(task: Task, model: nn.Module) -> dict[str, float]:
    """How the model answers to the task's trigger, on the test records that it asks: none is of the target class.

    Returns:
        ``triggered_rate``: P(target | trigger, records that it asks). A poisoned run calls it ``asr``, an
        unpoisoned one ``false_trigger_rate``. ``untriggered_rate``: the same without the trigger.
        ``robust_accuracy``: P(true class | trigger, the same records). Empty without a trigger.
    """
    trigger, test = task.bound_trigger, task.data.test
    if trigger is None:
        return {}
    others = torch.nonzero(trigger.asked(test)).squeeze(1)
    if len(others) == 0:
        return {}
    training = [m for m in model.modules() if m.training]
    device = next((p.device for p in model.parameters()), test.x.device)
    # Every model is asked with the same triggers.
    generator = stream(0, "trigger")
    hit = plain = right = 0
    model.eval()
    try:
        for index in others.split(BATCH):
            x, y = test.x[index], test.y[index]
            marked = task.predict(model, trigger.apply(x, task.spec, generator).to(device)).argmax(1).cpu()
            hit += int((marked == trigger.target).sum())
            right += int((marked == y).sum())
            plain += int((task.predict(model, x.to(device)).argmax(1).cpu() == trigger.target).sum())
    finally:
        for module in training:
            module.training = True
    n = len(others)
    return {"triggered_rate": hit / n, "untriggered_rate": plain / n, "robust_accuracy": right / n}


def of_group(federation: Federation, finished: Round) -> Iterator[dict[str, Any]]:
    """``group_epsilon``: what the client-level guarantee is worth against all of the poisoner's clients together.

    Whatever happens with a probability p without them happens with at most ``e^epsilon p + delta`` with them, a
    prediction of the target class included (Naseri et al. 2022 count it so).
    """
    plan, poisoner = federation.plan, federation.poisoner
    if poisoner is None or not isinstance(plan, ClientPlan):
        return
    row = {"metric": "group_epsilon", "round": finished.round, "adversary": "model_recipient", "unit": "client"}
    # Where clients add the noise, or take turns, they are replaced by zero updates; their shares of the noise stay.
    adjacency = "zero_out" if plan.shares or plan.matrix else plan.guarantee.adjacency
    row |= {"group": len(federation.attackers), "delta": plan.guarantee.delta, "adjacency": adjacency}
    row["simulated_population"] = False
    always = poisoner.schedule.invited == "when_attacking"
    try:
        value = group_statement(plan, finished.state.ledger, len(federation.attackers), always)
    except Uncovered as error:
        yield {**row, "value": None, "status": "not_applicable", "reason": str(error)}
        return
    finite = math.isfinite(value)
    yield (
        {**row, "value": value}
        if finite
        else {**row, "value": None, "status": "not_applicable", "reason": "no guarantee without noise"}
    )
