"""What a trigger does to a model."""

import torch
from torch import nn

from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.tasks.labelled import BATCH
from privbench.benchmarks.tasks.task import Task


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
