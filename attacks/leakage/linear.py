"""Inputs of a first fully connected layer from its gradient, by division (Phong et al. 2017, and successors)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from privbench.attacks.leakage.attack import AttackFailed, Reconstruction, check
from privbench.attacks.leakage.first_layer import FirstLayer, finish
from privbench.attacks.leakage.labels import infer
from privbench.attacks.leakage.observe import Observation
from privbench.attacks.leakage.optimise import valid_range
from privbench.attacks.leakage.recovered import fill, peel
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import Public, View


@dataclass(frozen=True)
class LinearInversion:
    """``dL/dW_i = sum_r s_ri x_r`` and ``dL/db_i = sum_r s_ri``, with ``s_ri = dL/dz_i`` of record r.

    What is exact, where the observation is one local step without noise:

    - One record, any activation: ``x = dL/dW_i / dL/db_i`` for every unit i with ``dL/db_i != 0`` (Phong et al. 2017,
      section 3; Geiping et al. 2020, proposition 3.1). Units are averaged by the square of their ``dL/db_i``, which is
      the same without noise, and least disturbed by it. A clip of the record's gradient changes nothing.
    - Several records, hidden layer: a unit that a single record activates gives that record (Fowl et al. 2022, section
      3). Which of the ratios are records is found without the truth: a record's slopes ``s_r``, computed anew from the
      ratio, must lie in the column space of ``dL/dW``, as only records' do; that needs more units than records. Each
      record found is subtracted, whereupon further units have a single record left. Records that share all of their
      units with others aren't found, which is most of them when records are many; the rest is filled with
      the ratios that agree among most units, then those in the valid range, then those of the largest ``dL/db_i``.
    - Several records, logistic regression: every row mixes all records. Given labels, slopes and inputs are solved for
      in turn. Up to ``classes - 1`` records with different labels are exact where this converges, as it does for small
      weights; records of one class come out as their mean.

    The first trained layer must be ``nn.Linear`` with a bias on the flattened input: images, signals and tables alike.

    Args:
        tolerance: how far from the column space, as a share of its length, a record's slopes may lie.
        iterations: of the solution for logistic regression.
    """

    tolerance: float = 1e-4
    iterations: int = 200

    def __post_init__(self) -> None:
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "in (0, 1)")
        require(self.iterations >= 1, "iterations", self.iterations, "at least 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"batch_size"})

    def reconstruct(self, view: View, observation: Observation, generator: torch.Generator) -> Reconstruction:
        """See :class:`~privbench.attacks.leakage.attack.Attack`."""
        check(view, observation, self.needs)
        public, records = view.public, observation.records
        layer = FirstLayer.of(public, observation.model)
        weight, bias = layer.part(observation.gradient)
        if not bias.any():
            raise AttackFailed(f"the bias gradient of the first layer, {layer.name!r}, is zero: no unit is active")
        if records == 1:
            x = (bias @ weight / bias.square().sum())[None]
            return finish(public, observation, x, layer.labels(x, bias[None]))
        if layer.final:
            labels = infer(public, observation, generator)
            return finish(public, observation, mixed(layer, weight, labels, self.iterations), labels)
        found = peel(layer, weight, bias, records, self.tolerance)
        alone = len(found.y)
        found = fill(found, records, box(public), lambda: infer(public, observation, generator))
        engine = f"division; {alone} of {records} ratios pass for records, the rest are guesses"
        return replace(finish(public, observation, found.x, found.y), engine=engine)


def mixed(layer: FirstLayer, weight: Tensor, labels: Tensor, iterations: int) -> Tensor:
    """Records of a batch from the gradient of logistic regression, ``(B, n)`` in the order of ``labels``.

    With the slopes ``A = (p_r - e_(y_r))_r / B``, ``dL/dW = A^T X``. From ``X = 0``, ``A`` at ``X`` and the ``X`` of
    least norm that solves the equation are computed in turn. Records of one class are one unknown, their mean.

    Args:
        weight: ``dL/dW``, ``(C, n)``.
        labels: ``(B,)``, ascending.
    """
    classes, which, counts = labels.unique(return_inverse=True, return_counts=True)
    share = (counts.to(weight) / len(labels))[:, None]
    x, best = weight.new_zeros(len(classes), weight.shape[1]), None
    for _ in range(iterations):
        slopes = (layer.slopes(x, classes) * share).T
        error = float((slopes @ x - weight).norm())
        if best is None or error < best[0]:
            best = (error, x)
        # A solution by the pseudo-inverse: with all classes there, the slopes sum to zero and rank is lost.
        x = torch.linalg.pinv(slopes, rtol=1e-9) @ weight
        if not torch.isfinite(x).all():
            break
    assert best is not None
    return best[1][which]


def box(public: Public) -> tuple[Tensor, Tensor] | None:
    """:func:`~privbench.attacks.leakage.optimise.valid_range` for flattened inputs, ``(n,)`` each, in float64."""
    valid = valid_range(public)
    if valid is None:
        return None
    low, high = (v.expand(public.shape).reshape(-1).double() for v in valid)
    return low, high
