"""BatchNorm statistics that an attack may expect of the records, and where they come from."""

from typing import Literal

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.attack import AttackFailed
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.view import Public

Source = Literal["running", "update"]


def statistics(public: Public, observation: Observation, source: Source) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and unbiased variances of each BatchNorm layer's input, by the layer's name.

    Args:
        source: ``running``: the averages in the model that was sent, which everybody who has it knows; they are of
            other records. ``update``: of the client's own batch, from the change of these averages that it sent: exact
            after one local step.

    Raises:
        AttackFailed: the model has no BatchNorm layer with running averages, or their change isn't visible.
    """
    layout = public.layout
    sent = layout.views(observation.model)
    layers = {n: m for n, m in public.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    known = {n: m for n, m in layers.items() if f"{n}.running_mean" in sent}
    if not known:
        raise AttackFailed("the model has no BatchNorm layer with running averages (bn_statistics)")
    if source == "running":
        return {n: (sent[f"{n}.running_mean"], sent[f"{n}.running_var"]) for n in known}
    if observation.buffers is None or observation.steps != 1:
        raise AttackFailed("bn_statistics=update: no change of the averages after one step is visible")
    full = torch.cat([torch.zeros(layout.trainable), observation.buffers.cpu()])
    change = layout.views(full)
    found = {}
    for name, module in known.items():
        if module.momentum is None:
            raise AttackFailed(f"bn_statistics=update: {name} keeps a cumulative average")
        found[name] = (
            sent[f"{name}.running_mean"] + change[f"{name}.running_mean"] / module.momentum,
            sent[f"{name}.running_var"] + change[f"{name}.running_var"] / module.momentum,
        )
    return found
