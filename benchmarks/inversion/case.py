"""What is attacked: the user's model, dump and settings, as the view of an operator who saw one client's message."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.update import Kind, Layout, Update
from privbench.benchmarks.federation.view import Known, Public, RoundView, View
from privbench.benchmarks.inversion.dump import Dump, make_dump
from privbench.benchmarks.inversion.files import Content
from privbench.benchmarks.inversion.model import Loss, check_loss, make_loss, outputs

Mode = Literal["eval", "train"]
Numbers = float | Sequence[float]


@dataclass(frozen=True)
class Case:
    """One client, one message.

    Args:
        public: model, loss and settings.
        sent: the model at which the client began, ``(layout.size,)``.
        dump: the message.
        records: behind it.
        steps: local steps behind it; 1 for a gradient.
        known: its published protection.
    """

    public: Public
    sent: Tensor
    dump: Dump
    records: int
    steps: int
    known: Known

    @property
    def unit(self) -> float:
        """What a dumped number is multiplied with to be one of the mean gradient."""
        return 1.0 if self.public.kind == "gradient" else -1 / (self.public.learning_rate * self.steps)

    @property
    def length(self) -> float:
        """The dump's norm, in the unit of the mean gradient."""
        return float(torch.cat([t.reshape(-1) for t in self.dump.tensors]).double().norm()) * abs(self.unit)

    @property
    def loss(self) -> Loss:
        loss = self.public.loss
        assert isinstance(loss, Loss)
        return loss

    def view(self) -> View:
        """The server operator's: it reads the client's message.

        Raises:
            ConfigError: if the dump's tensors don't have the parameters' shapes in their order.
        """
        vector = self.dump.vector()
        if vector is None:
            raise self.dump.misplaced()
        update = Update(torch.cat([vector, self.dump.buffers]), self.public.layout, self.public.kind, self.records)
        seen = RoundView(1, sent=self.sent, participants=(0,), updates={0: update})
        return View("server_operator", self.public, (seen,))


def make_case(
    model: nn.Module,
    update: Content,
    shape: Sequence[int],
    *,
    classes: int | None,
    records: int,
    kind: Kind,
    learning_rate: float | None,
    local_steps: int,
    batch_size: int | None,
    loss: str | Callable[[Tensor, Tensor], Tensor],
    mode: Mode,
    mean: Numbers,
    std: Numbers,
    clip: float | None,
    noise_std: float,
    pruned: bool = False,
    momentum: float = 0.0,
    shown: str = "update",
) -> Case:
    """Check all settings and put them together; see :func:`~privbench.benchmarks.inversion.invert.invert`.

    Raises:
        ConfigError: naming field, value and what would be right.
    """
    require(isinstance(model, nn.Module), "model", type(model).__name__, "a torch.nn.Module")
    shape = tuple(shape)
    sound = 1 <= len(shape) <= 3 and all(isinstance(s, int) and s >= 1 for s in shape)
    right = "(channels, height, width), (channels, samples) or (features,), without the batch"
    require(sound, "shape", list(shape), right)
    require(math.prod(shape) <= 10**8, "shape", list(shape), "an input of at most 10^8 numbers")
    require(records >= 1, "records", records, "at least 1")
    require(kind in ("gradient", "update"), "kind", kind, "one of gradient, update")
    require(mode in ("eval", "train"), "mode", mode, "one of eval, train")
    require(local_steps >= 1, "local_steps", local_steps, "at least 1")
    alone = "1 with kind=gradient: local steps make an update"
    require(local_steps == 1 or kind == "update", "local_steps", local_steps, alone)
    require(batch_size is None or batch_size >= 1, "batch_size", batch_size, "at least 1")
    if kind == "update" and learning_rate is None:
        raise ConfigError("learning_rate", None, "the client's: an update is -learning_rate times the sum of gradients")
    rate = 1.0 if learning_rate is None else learning_rate
    require(0 < rate < math.inf, "learning_rate", rate, "a positive, finite rate")
    require(clip is None or 0 < clip < math.inf, "clip", clip, "a positive, finite norm")
    require(0 <= noise_std < math.inf, "noise_std", noise_std, "a finite standard deviation of 0 or more")
    require(0 <= momentum < 1, "momentum", momentum, "0 or more, below 1")
    require(momentum == 0 or kind == "update", "momentum", momentum, "0 with kind=gradient: no step is taken")
    function = make_loss(loss)
    try:
        model = copy.deepcopy(model).float().cpu()
    except Exception as error:  # a model of the user's can raise anything
        raise ConfigError("model", type(model).__name__, f"a model that can be copied ({error})") from None
    model.train(mode == "train")
    layout = Layout.of(model)
    require(layout.parameters > 0, "model", type(model).__name__, "a model with trained parameters")
    sent = layout.read(model)
    require(
        bool(torch.isfinite(sent).all()), "weights", type(model).__name__, "finite weights: NaN or infinity in them"
    )
    made = outputs(model, shape)
    right = f"the {made} outputs that the model has for shape={','.join(map(str, shape))}"
    require(classes in (None, made), "classes", classes, right)
    several = "at least 2: cross entropy over a single class has no gradient (loss=mse, or your own, for one output)"
    require(made >= 2 or function.name != "cross_entropy", "classes", made, several)
    check_loss(function, made)
    known = Known(clip, 0.0, noise_std, pruned)
    public = Public(
        model=model,
        layout=layout,
        loss=function,
        shape=shape,
        classes=made,
        mean=_per_channel("mean", mean, shape),
        std=_per_channel("std", std, shape),
        kind=kind,
        learning_rate=rate,
        local_steps=lambda records: local_steps,
        known=lambda source, client: known,
        records=(records,),
        work=LocalWork(learning_rate=rate, batch_size=batch_size, steps=local_steps, momentum=momentum, share=kind),
    )
    dump = make_dump(update, model, layout, shown)
    _no_weights(dump, sent[: layout.trainable], shown)
    return Case(public, sent, dump, records, local_steps, known)


def _no_weights(dump: Dump, sent: Tensor, shown: str) -> None:
    """Refuse what a few steps make of the weights: the model itself, where its change is asked for."""
    vector, length = dump.vector(), float(sent.double().norm())
    if vector is None or length == 0:
        return
    away = float((vector.double() - sent.double()).norm()) / length
    right = (
        "a gradient or w_after - w_before; it is a state dict, the model's weights themselves "
        f"({away:.1%} away from those it began with): give two with --before and --after, or their difference"
    )
    require(away > 0.3, "update", shown, right)


def _per_channel(field: str, value: Numbers, shape: tuple[int, ...]) -> Tensor:
    """One number, or one a channel (for tables: a feature), broadcastable to ``shape``."""
    numbers = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
    shown = [round(float(v), 6) for v in numbers[:8]]
    require(len(numbers) in (1, shape[0]), field, shown, f"1 or {shape[0]} numbers")
    sound = bool(torch.isfinite(numbers).all()) and (field == "mean" or bool((numbers > 0).all()))
    require(sound, field, shown, "finite numbers" if field == "mean" else "finite numbers above 0")
    return numbers.expand(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
