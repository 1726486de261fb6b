"""The user's model, its weights, and its loss."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.inversion.files import Content

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def load_object(name: str, field: str) -> Any:
    """What ``pkg.module:name`` names. Importing runs the module's code: it is the user's own.

    Raises:
        ConfigError: if it isn't there, or its import fails.
    """
    require(bool(_NAME.fullmatch(name)), field, name, "module:name, such as mymodels.digits:make")
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the module is the user's, and can raise anything
        raise ConfigError(field, name, f"something to import ({type(error).__name__}: {error})") from None


def make_model(name: str, seed: int) -> nn.Module:
    """The model that ``pkg.module:name`` names: a module, or what a class or function without arguments makes.

    Args:
        seed: of PyTorch's global generator while the factory runs.

    Raises:
        ConfigError: if there is none.
    """
    found = load_object(name, "model")
    if not isinstance(found, nn.Module):
        require(callable(found), "model", name, f"a function, a class or a module, it is a {type(found).__name__}")
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                found = found()
        except (Exception, SystemExit) as error:  # as above
            raise ConfigError(
                "model", name, f"to be callable without arguments ({type(error).__name__}: {error})"
            ) from None
    require(isinstance(found, nn.Module), "model", name, f"a torch.nn.Module, it returns a {type(found).__name__}")
    return found


@torch.no_grad()
def load_weights(model: nn.Module, weights: Content, field: str, shown: str) -> None:
    """Put a state dict into ``model``; the prefix ``module.`` of ``DataParallel`` is taken off.

    Raises:
        ConfigError: if names or shapes aren't the model's, or a number isn't finite.
    """
    if not isinstance(weights, dict):
        raise ConfigError(field, shown, "a state dict: tensors by name, as torch.save(model.state_dict(), FILE) writes")
    own = model.state_dict()
    if all(n.startswith("module.") for n in weights) and not any(n.startswith("module.") for n in own):
        weights = {n.removeprefix("module."): w for n, w in weights.items()}
    missing, extra = [n for n in own if n not in weights], [n for n in weights if n not in own]
    require(not missing, field, shown, f"weights of this model; without {some(missing)}")
    require(not extra, field, shown, f"weights of this model; it has no {some(extra)}")
    for name, value in weights.items():
        ours = own[name]
        if value is None or value.shape != ours.shape:
            found = None if value is None else tuple(value.shape)
            raise ConfigError(field, shown, f"weights of this model; {name} has shape {found}, not {tuple(ours.shape)}")
        require(bool(torch.isfinite(value).all()), field, shown, f"finite weights; {name} has NaN or infinity")
        ours.copy_(value)


def some(names: list[str]) -> str:
    """Up to three of ``names``, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def outputs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """How many numbers the model returns for an input of ``shape``: by a forward pass of two zeros in evaluation mode.

    Raises:
        ConfigError: if the model doesn't take the shape, or returns something else than one vector an input.
    """
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad():
            found = model(torch.zeros(2, *shape))
    except Exception as error:  # a model of the user's can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError("shape", list(shape), f"the shape of one input that the model takes ({reason})") from None
    finally:
        for module in training:
            module.training = True
    if not isinstance(found, Tensor):
        raise ConfigError("model", type(model).__name__, f"a model that returns a tensor, not a {type(found).__name__}")
    vector = found.shape[:1] == (2,) and found.ndim <= 2
    right = f"a model that returns (batch, classes), of two inputs it makes {tuple(found.shape)}"
    require(vector, "model", type(model).__name__, right)
    return found.shape[1] if found.ndim == 2 else 1


@dataclass(frozen=True)
class Loss:
    """``loss(model, (x, y))`` of a function of output and labels.

    Args:
        name: as the user gave it.
        function: ``function(output, y)``, a scalar; ``y`` is ``(B,)`` int64, or ``(B, C)`` where labels are soft.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return self.function(model(x), y)


def mse(output: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch and the outputs of ``(output - y)^2``; whole-number labels become one-hot vectors."""
    target = y if y.is_floating_point() else F.one_hot(y, output.shape[-1]).to(output)
    return F.mse_loss(output, target.reshape(output.shape))


def check_loss(loss: Loss, outputs: int) -> None:
    """Try ``loss`` on two outputs that are zero.

    Raises:
        ConfigError: if it isn't a scalar there, or fails.
    """
    output, y = torch.zeros(2, outputs, requires_grad=True), torch.zeros(2, dtype=torch.int64 if outputs > 1 else None)
    try:
        value = loss.function(output, y)
    except Exception as error:  # the user's own
        reason = f"a function of output (batch, {outputs}) and labels (batch,) ({type(error).__name__}: {error})"
        raise ConfigError("loss", loss.name, reason) from None
    scalar = isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad
    require(scalar, "loss", loss.name, "a function that returns a scalar to differentiate, the mean over the batch")


def make_loss(loss: str | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """``cross_entropy``, ``mse``, a function ``(output, y) -> scalar``, or its name ``pkg.module:function``.

    Raises:
        ConfigError: if it isn't one.
    """
    if not isinstance(loss, str):
        require(callable(loss), "loss", loss, "a function of output and labels")
        return Loss(getattr(loss, "__qualname__", type(loss).__name__), loss)
    ours = {"cross_entropy": F.cross_entropy, "mse": mse}
    if loss in ours:
        return Loss(loss, ours[loss])
    require(":" in loss, "loss", loss, "one of cross_entropy, mse, or module:function")
    found = load_object(loss, "loss")
    try:
        found = found() if isinstance(found, type) else found
    except Exception as error:  # the user's own
        raise ConfigError("loss", loss, f"a class without arguments ({type(error).__name__}: {error})") from None
    require(callable(found), "loss", loss, f"a function of output and labels, it is a {type(found).__name__}")
    return Loss(loss, found)
