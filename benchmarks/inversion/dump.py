"""What the user brings: tensors of a gradient or an update, in an order that has to be found out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.inversion.files import Content
from privbench.benchmarks.inversion.model import some

Order = Sequence[int]
"""``order[k]`` is the parameter that tensor ``k`` belongs to."""


@dataclass(frozen=True)
class Dump:
    """Tensors that belong to the trained parameters of a layout.

    Args:
        tensors: float32, in the file's order; a single flat vector where ``flat``.
        layout: of the model.
        buffers: differences of float buffers, ``(layout.size - layout.trainable,)``; 0 where there are none.
        named: whether the file names its tensors, so that ``tensors`` are in the layout's order for certain.
        flat: whether the file is one vector.
        coarse: whether numbers have 16 bits or fewer.
        shown: how messages call it.
    """

    tensors: tuple[Tensor, ...]
    layout: Layout
    buffers: Tensor
    named: bool
    flat: bool
    coarse: bool
    shown: str

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.layout.shapes[: self.layout.parameters]

    def fits(self, order: Order) -> bool:
        """Whether every tensor has its parameter's shape."""
        return self.flat or all(tuple(t.shape) == self.shapes[p] for t, p in zip(self.tensors, order, strict=True))

    def vector(self, order: Order | None = None) -> Tensor | None:
        """The trained entries in the layout's order, ``(layout.trainable,)``; ``None`` where shapes don't fit.

        Args:
            order: of the file's tensors; ``None``: that of the layout.
        """
        order = range(self.layout.parameters) if order is None else order
        if not self.fits(order):
            return None
        parts = self.tensors
        if self.flat:
            parts = torch.split(self.tensors[0], [prod(self.shapes[p]) for p in order])
        by_parameter = dict(zip(order, parts, strict=True))
        return torch.cat([by_parameter[p].reshape(-1) for p in range(self.layout.parameters)])

    def orders(self) -> dict[str, Order]:
        """Orders in which files have been seen, by what they are called, in which shapes fit."""
        names = self.layout.names[: self.layout.parameters]
        number = range(len(names))
        every = {
            "reversed": [*reversed(number)],
            "sorted by name": sorted(number, key=lambda p: names[p]),
            "biases before weights in each layer": sorted(number, key=lambda p: _bias_first(names, p)),
            "all weights, then all biases": sorted(number, key=lambda p: names[p].rpartition(".")[2] == "bias"),
        }
        plain = [*number]
        return {name: order for name, order in every.items() if order != plain and self.fits(order)}

    def misplaced(self) -> ConfigError:
        """Why :meth:`vector` is ``None``."""
        names = self.layout.names
        wrong = next(k for k, t in enumerate(self.tensors) if tuple(t.shape) != self.shapes[k])
        found = f"tensor {wrong} has shape {tuple(self.tensors[wrong].shape)}, {names[wrong]} has {self.shapes[wrong]}"
        fitting = [*self.orders()]
        hint = f"; the shapes fit parameters {fitting[0]}" if fitting else ""
        return ConfigError("update", self.shown, f"tensors in the order of model.parameters(): {found}{hint}")


def _bias_first(names: Sequence[str], parameter: int) -> tuple[int, bool]:
    layer = names[parameter].rpartition(".")[0]
    first = next(i for i, n in enumerate(names) if n.rpartition(".")[0] == layer)
    return first, not names[parameter].endswith("bias")


def make_dump(content: Content, model: nn.Module, layout: Layout, shown: str = "update") -> Dump:
    """Match tensors and parameters, as far as shapes tell.

    A list may also be that of ``state_dict().values()``, and a flat vector may hold float buffers behind parameters.

    Raises:
        ConfigError: for another model's tensors, NaN, infinity, or nothing but zeros.
    """
    shapes, names = layout.shapes[: layout.parameters], layout.names[: layout.parameters]
    coarse = any(t is not None and t.dtype in (torch.float16, torch.bfloat16) for t in _tensors(content))
    buffers: dict[str, Tensor] = {}
    flat = False
    if isinstance(content, Tensor) and content.ndim != 1:
        content = [content]
    alone = content[0] if isinstance(content, list) and len(content) == 1 else None
    if alone is not None and alone.ndim == 1 < len(shapes):
        content = alone
    named = isinstance(content, dict)
    if isinstance(content, Tensor):
        require(
            len(content) in (layout.trainable, layout.size),
            "update",
            shown,
            f"an update of this model: {len(content)} numbers, the model has {layout.trainable} trained parameters",
        )
        flat, tensors = True, [content[: layout.trainable]]
        if len(content) == layout.size:
            buffers = {n: t for n, t in layout.views(content).items() if n in layout.buffers}
    else:
        state = model.state_dict()
        if isinstance(content, list) and len(content) == len(state) != len(names) and _alike(content, state):
            content, named = dict(zip(state, content, strict=True)), True
        if isinstance(content, dict):
            content = _unwrapped(content, names)
            missing = [n for n in names if n not in content]
            require(not missing, "update", shown, f"an update of this model; without {some(missing)}")
            extra = [n for n in content if n not in state and n not in names]
            require(not extra, "update", shown, f"an update of this model; it has no parameter {some(extra)}")
            buffers = {n: t for n in layout.buffers if (t := content.get(n)) is not None}
            given = [content[n] for n in names]
        else:
            given = content
        count = f"an update of this model: {len(given)} tensors, the model has {len(shapes)} trained parameters"
        require(len(given) == len(shapes), "update", shown, count)
        tensors = [torch.zeros(s) if t is None else t for t, s in zip(given, shapes, strict=True)]
        _same_shapes(tensors, names, shapes, named, shown)
    tensors = [t.to(torch.float32) for t in tensors]
    for k, tensor in enumerate(tensors):
        where = "" if flat else f" in {names[k]}" if named else f" in tensor {k}"
        require(bool(torch.isfinite(tensor).all()), "update", shown, f"finite numbers; NaN or infinity{where}")
    zero = "a gradient: it is zero everywhere (no unit is active, or nothing was trained)"
    require(any(bool(t.any()) for t in tensors), "update", shown, zero)
    return Dump(tuple(tensors), layout, _rest(buffers, layout, shown), named, flat, coarse, shown)


def _rest(buffers: dict[str, Tensor], layout: Layout, shown: str) -> Tensor:
    parts = [torch.zeros(0)]
    for name, shape in zip(layout.buffers, layout.shapes[layout.parameters :], strict=True):
        part = buffers.get(name, torch.zeros(shape)).to(torch.float32)
        sound = tuple(part.shape) == shape and bool(torch.isfinite(part).all())
        require(sound, "update", shown, f"finite numbers of shape {shape} for {name}")
        parts.append(part.reshape(-1))
    return torch.cat(parts)


def _tensors(content: Content) -> list[Tensor | None]:
    if isinstance(content, Tensor):
        return [content]
    return [*content.values()] if isinstance(content, dict) else content


def _alike(content: list[Tensor | None], state: dict[str, Tensor]) -> bool:
    return all(t is not None and t.shape == s.shape for t, s in zip(content, state.values(), strict=True))


def _unwrapped(content: dict[str, Tensor | None], names: Sequence[str]) -> dict[str, Tensor | None]:
    """Without the prefix that ``DataParallel`` (``module.``) or Opacus (``_module.``) puts before names."""
    if any(n in content for n in names):
        return content
    return {re.sub(r"^_?module\.", "", n): t for n, t in content.items()}


def _same_shapes(
    tensors: list[Tensor], names: Sequence[str], shapes: Sequence[tuple[int, ...]], named: bool, shown: str
) -> None:
    found = [tuple(t.shape) for t in tensors]
    if found == [*shapes] or (not named and sorted(found) == sorted(shapes)):
        return
    k = next(k for k, (f, s) in enumerate(zip(found, shapes, strict=True)) if f != s)
    hint = "; it is the transpose" if found[k] == shapes[k][::-1] else ""
    which = names[k] if named else f"tensor {k}"
    right = f"an update of this model; {which} has shape {found[k]}, parameter {names[k]} has {shapes[k]}{hint}"
    raise ConfigError("update", shown, right)
