"""How many units fit into memory at once."""

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from privbench.defenses.local.per_sample.engine import Loss, Units, trainable

GIB = 1 << 30


def units_at_once(model: nn.Module, loss: Loss, unit: Units, name: str, memory: float) -> int:
    """The number of units a part of a batch may have, at least 1.

    A bound for planning, from what autograd saves for one unit; it is the same on every machine, so that parts, and
    with them the order of summation, are too.

    Args:
        model: in which one unit is run.
        loss: of a batch.
        unit: a single one.
        name: of the engine.
        memory: GiB for all that grows with the number of units.
    """
    if name == "loop":
        return 1
    parameters = trainable(model)
    own = {p.data_ptr() for p in parameters.values()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model, (unit.x, unit.y))
    # What is saved, as much for its gradients, and as much again for what a layer makes of both on its way.
    each = 3 * sum(saved.values())
    if name == "vmap":
        # A unit's gradient, and a copy of the largest parameter's while they are added up.
        each += sum(p.numel() * p.element_size() for p in parameters.values()) * 2
    return max(1, int(memory * GIB / max(1, each)))
