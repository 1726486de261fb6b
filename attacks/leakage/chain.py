"""A model as a chain of layers, each the only input of the next; what isn't one is refused by name."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.activations import invertible
from privbench.attacks.leakage.attack import AttackFailed
from privbench.benchmarks.federation.view import Public

Trained = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Step:
    """A module's turn for a single record.

    Args:
        name: as in ``named_modules``.
        module: a trained layer or an activation, float64.
        before, after: shapes of its input and output.
    """

    name: str
    module: nn.Module
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def trained(self) -> bool:
        """Whether it is a layer and no activation."""
        return isinstance(self.module, Trained)


def chain(public: Public, vector: Tensor) -> tuple[Step, ...]:
    """Layers and activations in the order of a forward pass, the last one ``nn.Linear`` with the model's output.

    Flattening and ``nn.Identity`` leave no step. Order within a record is kept between steps, shapes may differ.

    Args:
        vector: the model, ``(layout.size,)``.

    Raises:
        AttackFailed: with the name of what is in the way: a layer other than ``nn.Linear``, ``nn.Conv1d`` and
            ``nn.Conv2d``, one that trains no weight or is used twice, an activation that can't be undone, or a
            computation that isn't a module.
    """
    model = copy.deepcopy(public.model).to(vector.device).eval()
    public.layout.write(vector, model)
    model = model.double().requires_grad_(False)
    probe = torch.randn(1, *public.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = probe.to(vector.device)
    calls, output = _trace(model, probe)
    trained = set(public.layout.names[: public.layout.parameters])
    steps: list[Step] = []
    at, place = probe, "the input"
    for name, module, given, made in calls:
        _same(given, at, place, f"{name!r}")
        at, place = made, f"{name!r}"
        # Dropout is switched off: its masks are not known, as everywhere in attacks.
        if isinstance(module, (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)):
            continue
        _check(name, module, given, trained)
        steps.append(Step(name, module, tuple(given.shape[1:]), tuple(made.shape[1:])))
    _same(output, at, place, "the output")
    layers = [step.name for step in steps if step.trained]
    twice = next((name for name in layers if layers.count(name) > 1), None)
    if twice is not None:
        raise AttackFailed(f"the layer {twice!r} is used more than once: its gradient is a sum")
    if not steps or not isinstance(steps[-1].module, nn.Linear):
        last = f"{steps[-1].name!r}, {type(steps[-1].module).__name__}" if steps else "nothing"
        raise AttackFailed(f"the model ends in {last}: the recursion starts at nn.Linear")
    return tuple(steps)


def _check(name: str, module: nn.Module, given: Tensor, trained: set[str]) -> None:
    kind = type(module).__name__
    if not isinstance(module, Trained):
        if not invertible(module):
            what = "nn.Linear, nn.Conv1d, nn.Conv2d and activations that can be undone"
            raise AttackFailed(f"{name!r} is {kind}: the recursion goes through {what} alone")
        return
    if (f"{name}.weight" if name else "weight") not in trained:
        raise AttackFailed(f"the layer {name!r} ({kind}) trains no weight: its gradient says nothing")
    if isinstance(module, nn.Linear):
        if given.dim() != 2:
            raise AttackFailed(f"the layer {name!r} (Linear) is applied to inputs of shape {tuple(given.shape[1:])}")
    elif module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        how = f"groups={module.groups}, padding={module.padding!r}, padding_mode={module.padding_mode!r}"
        raise AttackFailed(f"the layer {name!r} ({kind}) has {how}: only plain zero padding in numbers is handled")


def _same(given: Tensor, expected: Tensor, place: str, goal: str) -> None:
    if given.numel() != expected.numel() or not torch.equal(given.flatten(), expected.flatten()):
        raise AttackFailed(f"the model is no chain of modules: something happens between {place} and {goal}")


Call = tuple[str, nn.Module, Tensor, Tensor]


@torch.no_grad()
def _trace(model: nn.Module, probe: Tensor) -> tuple[list[Call], Tensor]:
    """Modules without children in the order of their turns, with input and output, and the model's output."""
    calls: list[Call] = []
    given: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.append(inputs[0].clone())  # before an activation works in place

    def hook(name: str):
        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((name, module, given.pop(), output.clone()))

        return after

    hooks = []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(hook(name))]
    try:
        return calls, model(probe)
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        shape = tuple(probe.shape[1:])
        raise AttackFailed(f"the model can't be followed on an input of shape {shape} ({error})") from error
    finally:
        for one in hooks:
            one.remove()
