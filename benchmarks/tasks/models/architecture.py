"""What a model's configuration is, and how a model is drawn from a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.tasks.task import Domain, Spec


class Architecture(Protocol):
    """A model before it knows its data."""

    def build(self, spec: Spec) -> nn.Module:
        """A module that maps ``(n, *spec.shape)`` to logits ``(n, len(spec.classes))``.

        Its initial weights come from PyTorch's global generator: use :func:`make`.

        Raises:
            ConfigError: if it can't take such inputs.
        """
        ...


def make(architecture: Architecture, spec: Spec, seed: int) -> nn.Module:
    """Build a model whose initial weights depend on ``seed`` alone; the global generator is left as it was.

    Raises:
        ConfigError: if the architecture can't take the task's inputs, or encodes no pairs where there are pairs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, "model").initial_seed())
        model = architecture.build(spec)
    encodes = all(hasattr(model, name) for name in ("encode_picture", "encode_text"))
    hint = f"dual_encoder, or another with encode_picture and encode_text: {spec.name} has pairs"
    require(encodes or spec.domain != "pair", "model", type(model).__name__, hint)
    return model


@dataclass(frozen=True)
class Custom:
    """Any module: your own class or function, in a package that ``trusted_targets`` names.

    A model whose ``_target_`` is no architecture becomes this one.

    Args:
        factory: called without arguments; in YAML a ``_target_`` with ``_partial_: true`` and its arguments.
    """

    factory: Callable[..., Any]

    def build(self, spec: Spec) -> nn.Module:
        model = self.factory()
        require(isinstance(model, nn.Module), "model", type(model).__name__, "a factory of torch.nn.Module")
        training = model.training
        try:
            with torch.no_grad():
                found = tuple(model.eval()(torch.zeros(2, *spec.shape)).shape)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError("model", type(model).__name__, f"a model for {spec.shape} ({reason})") from error
        wanted = (2, len(spec.classes))
        require(found == wanted, "model", type(model).__name__, f"logits {wanted} for 2 inputs, not {found}")
        return model.train(training)


def expect(architecture: Architecture, spec: Spec, domain: Domain, smallest: int = 1) -> None:
    """Raise :class:`ConfigError` unless inputs are of ``domain``, with edges (or a length) of ``smallest`` at least."""
    name = type(architecture).__name__
    fits = spec.domain == domain and min(spec.shape[1:]) >= smallest
    least = f" of at least {smallest} {'samples' if domain == 'signal' else 'pixels'}" if smallest > 1 else ""
    require(
        fits, "model", name, f"a model for {spec.name} ({spec.domain} of {spec.shape}); {name} takes: {domain}{least}"
    )
