"""The Python call: attack a dump of a gradient or an update, after checking it where the truth is known."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from privbench.attacks.leakage.attack import Attack, AttackFailed, Reconstruction
from privbench.attacks.leakage.labels import Labels
from privbench.attacks.leakage.observe import Observation, observe
from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.update import Kind
from privbench.benchmarks.federation.view import View
from privbench.benchmarks.inversion.attacks import make_attack, with_labels
from privbench.benchmarks.inversion.case import Case, Mode, Numbers, make_case
from privbench.benchmarks.inversion.diagnosis import Diagnosis, diagnose
from privbench.benchmarks.inversion.files import content
from privbench.benchmarks.inversion.notes import notes
from privbench.benchmarks.inversion.result import Inversion, measure
from privbench.benchmarks.inversion.truth import check_labels, check_pixels, make_labels, make_truth
from privbench.benchmarks.measures import images
from privbench.benchmarks.tasks.task import Split


class DumpDiffers(ValueError):
    """The dump isn't the gradient at the inputs that the user gave: an attack's numbers would mean nothing.

    Args:
        diagnosis: with what is off, as far as it could be found.
    """

    def __init__(self, diagnosis: Diagnosis):
        super().__init__(str(diagnosis))
        self.diagnosis = diagnosis


def invert(
    model: nn.Module,
    update: Tensor | Sequence[Tensor | None] | Mapping[str, Tensor | None],
    shape: Sequence[int],
    *,
    classes: int | None = None,
    records: int | None = None,
    labels: Literal["inferred", "joint", "known"] | Sequence[int] | None = None,
    inputs: tuple[Tensor, Tensor] | None = None,
    kind: Kind = "gradient",
    learning_rate: float | None = None,
    local_steps: int = 1,
    batch_size: int | None = None,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
    mode: Mode = "eval",
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
    clip: float | None = None,
    noise_std: float = 0.0,
    pruned: bool = False,
    momentum: float = 0.0,
    attack: str | Attack = "inverting_gradients",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    force: bool = False,
) -> Inversion:
    """Reconstruct the records behind a gradient or an update of any model.

    Args:
        model: with the weights at which the client began. It isn't changed; frozen parameters stay frozen.
        update: tensors in the order of ``model.parameters()`` or by name, or one flat vector. Parameters that aren't
            trained (``requires_grad=False``) have none.
        shape: of one input: ``(channels, height, width)``, ``(channels, samples)`` or ``(features,)``.
        classes: the model's outputs; ``None``: found by a forward pass.
        records: behind the update; ``None``: as many as inputs or labels are given, else 1.
        labels: ``inferred`` from the gradient, ``joint`` with the records, or known ones (side information), as numbers
            or, for those of ``inputs``, ``known``; ``None``: as the attack does by itself.
        inputs: the true ``(x, y)``, ``x`` as the model gets it. The attack never sees them; labels alone where they are
            ``known``.
        kind: ``update`` is ``w_after - w_before`` of plain SGD and needs ``learning_rate`` and ``local_steps``.
        batch_size: records a local step; ``None``: all.
        loss: ``cross_entropy``, ``mse``, or a function ``(output, y) -> scalar``, the mean over the batch.
        mode: of the model on the client; ``train`` is BatchNorm with the batch's own statistics.
        mean, std: standardisation, one number or one a channel: ``raw = x * std + mean``; raw pixels are in [0, 1].
        clip, noise_std: published protection: L2 bound of the whole update, standard deviation of each number's noise.
        pruned: the client pruned the update: entries that are exactly 0 say nothing.
        momentum: of the client's SGD, whose buffer was zero; attacks that unroll local training follow it.
        attack: a choice of ``conf/leakage``, a dotted path to a class, or an attack.
        settings: of the attack where it is named, values by field.
        seed: of the attack.
        force: attack even if the dump isn't the gradient at ``inputs``, their pixels aren't in [0, 1], or ``labels``
            contradict theirs.

    Raises:
        ConfigError: naming field, value and what would be right.
        DumpDiffers: if the dump isn't the gradient at ``inputs``, naming what is off.
        AttackFailed: if the attack found nothing, with its reason.
    """
    numbers = None if labels is None or isinstance(labels, str) else torch.as_tensor(labels)
    if records is None:
        records = len(numbers) if numbers is not None else _count(inputs, shape)
    case = make_case(
        model,
        content([*update] if isinstance(update, list | tuple) else update, "update", "update"),
        shape,
        classes=classes,
        records=records,
        kind=kind,
        learning_rate=learning_rate,
        local_steps=local_steps,
        batch_size=batch_size,
        loss=loss,
        mode=mode,
        mean=mean,
        std=std,
        clip=clip,
        noise_std=noise_std,
        pruned=pruned,
        momentum=momentum,
    )
    return attack_case(case, attack, settings or {}, labels, inputs, seed, force)


def attack_case(
    case: Case,
    attack: str | Attack,
    settings: Mapping[str, Any],
    labels: str | Sequence[int] | None,
    inputs: tuple[Tensor, Tensor] | None,
    seed: int,
    force: bool,
) -> Inversion:
    """:func:`invert` of a case that is put together."""
    public = case.public
    require(0 <= seed < 2**63, "seed", seed, "0 to 2^63 - 1")
    truth = None
    if inputs is not None:
        truth = make_truth(inputs[0], inputs[1], public.shape, public.classes)
        require(len(truth) == case.records, "records", case.records, f"{len(truth)}, the number of inputs")
    how, known = _labels(case, labels, truth)
    if isinstance(attack, str):
        made = make_attack(attack, settings)
    else:
        require(not settings, "settings", dict(settings), "none: this attack has its own")
        made = attack
    made = with_labels(made, how)
    _check_labels(case, made, known)
    diagnosis = None if truth is None else diagnose(case, truth)
    if diagnosis is not None and not diagnosis.agrees and not force:
        raise DumpDiffers(diagnosis)
    if truth is not None and not force:
        check_pixels(public, truth.x)
        if known is not None:
            check_labels(known, truth)
    _check_size(case)
    view = case.view()
    observation = observe(view, 1, 0)
    assert observation is not None, "an update is readable"
    if "labels" in made.needs:
        observation = replace(observation, labels=known)
    found, seconds = _reconstruct(made, view, observation, seed)
    x, y, metrics = found.x, found.y, {}
    if truth is not None:
        i, j = images.match(found.x, truth.x)
        x, y = torch.zeros_like(truth.x), torch.full_like(truth.y, -1)
        x[j], y[j] = found.x[i].to(x), found.y[i].to(y)
        metrics = measure(public, found, truth)
    said = notes(case, made, observation, diagnosis, found, truth)
    return Inversion(x, y, found, made, public, case.records, diagnosis, truth, metrics, seconds, said)


def _check_size(case: Case) -> None:
    """Attacks compare gradients by squares of float32 numbers."""
    length = case.length
    right = f"a gradient of usual size, its norm is {length:.3g}: squares of its numbers would leave float32; scale it"
    require(1e-15 < length < 1e15, "update", case.dump.shown, right)


def _reconstruct(attack: Attack, view: View, observation: Observation, seed: int) -> tuple[Reconstruction, float]:
    started = time.perf_counter()
    try:
        found = attack.reconstruct(view, observation, torch.Generator().manual_seed(seed))
    except AttackFailed:
        raise
    except Exception as error:  # the model and the loss are the user's: a missing second derivative, memory, ...
        raise AttackFailed(f"{type(error).__name__} in the attack: {error}") from error
    seconds = time.perf_counter() - started
    # A GPU's or a graph's leftovers must not travel with the result.
    plain = {n: getattr(found, n).detach().cpu() for n in ("x", "y", "candidates")}
    found = replace(found, **plain)
    if not bool(torch.isfinite(found.x).all()) or not len(found.x):
        raise AttackFailed("the attack returned no finite record")
    return found, seconds


def _count(inputs: tuple[Tensor, Tensor] | None, shape: Sequence[int]) -> int:
    if inputs is None:
        return 1
    return 1 if inputs[0].ndim == len(shape) else len(inputs[0])


def _labels(case: Case, labels: str | Sequence[int] | None, truth: Split | None) -> tuple[Labels | None, Tensor | None]:
    """The attack's way to come by labels, and those that are known."""
    if labels is None:
        return None, None
    if isinstance(labels, str):
        if labels == "inferred" or labels == "joint":
            return labels, None
        require(labels == "known", "labels", labels, "one of inferred, joint, known, or numbers such as 3,1,4")
        if truth is None:
            raise ConfigError("labels", labels, "numbers such as 3,1,4, or inputs that have them")
        return "known", truth.y
    numbers = torch.as_tensor(labels)
    return "known", make_labels(numbers, case.records, case.public.classes, "labels")


def _check_labels(case: Case, attack: Attack, known: Tensor | None) -> None:
    how = getattr(attack, "labels", None)
    if "labels" in attack.needs and known is None:
        raise ConfigError("labels", how, "labels=3,1,4 or the like: this attack has to be told them")
    if how == "inferred" and case.loss.name == "mse":
        raise ConfigError("labels", how, "known or joint with loss=mse: inference presumes softmax cross entropy")
    if how in ("inferred", "joint") and case.public.classes < 2:
        raise ConfigError("labels", how, "known: with a single output there are no classes to find")
