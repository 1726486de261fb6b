"""What a client would send after several local steps, as a function of its records (Geiping et al. 2020, section 6)."""

from collections.abc import Callable

import torch
from torch import Tensor

from privbench.attacks.leakage.gradient import ClientGradient, Tensors, flat
from privbench.attacks.leakage.rows import NoRows
from privbench.benchmarks.federation.settings import LocalWork


class ClientUpdate:
    """``(x, y) -> (w_0 - w_T) / (learning_rate T)``: local training unrolled, twice differentiable.

    The order in which a client visits its records is not known. Any order of a first epoch only renames records, if
    their labels go with them; the same order is assumed in later epochs, as in the paper. Inferred labels come in
    ascending order, so that batches smaller than the client's data are divided by class: an approximation.

    Args:
        gradient: of the public loss at the model received.
        work: what clients do.
    """

    def __init__(self, gradient: ClientGradient, work: LocalWork):
        self._gradient, self._work = gradient, work

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Shape ``(layout.trainable,)``; for plain automatic differentiation."""
        return self._train(self._gradient.parameters, self._gradient.at, x, y)

    def functional(self, x: Tensor, y: Tensor) -> Tensor:
        """The same inside ``torch.func`` transforms."""
        start = {name: p.detach() for name, p in self._gradient.parameters.items()}
        return self._train(start, self._gradient.functional_at, x, y)

    def by_row(self, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Not to be had: after its first step each row has a model of its own."""
        raise NoRows("local steps are unrolled")

    def _train(
        self, start: Tensors, gradient: Callable[[Tensors, Tensor, Tensor], Tensors], x: Tensor, y: Tensor
    ) -> Tensor:
        work, now = self._work, start
        velocity: Tensors = {}
        batches = visits(len(x), work)
        for index in batches:
            slope = gradient(now, x[index], y[index])
            if work.proximal:
                slope = {n: s + work.proximal * (now[n] - start[n]) for n, s in slope.items()}
            if work.weight_decay:
                slope = {n: s + work.weight_decay * now[n] for n, s in slope.items()}
            if work.momentum:
                velocity = {n: work.momentum * velocity[n] + s if velocity else s for n, s in slope.items()}
                slope = velocity
            now = {n: p - work.learning_rate * slope[n] for n, p in now.items()}
        return (flat(start) - flat(now)) / (work.learning_rate * len(batches))


def visits(records: int, work: LocalWork) -> list[Tensor]:
    """Which records each local step takes, in the order assumed: consecutive batches, epoch after epoch."""
    size = work.batch(records)
    epoch = [torch.arange(k, min(k + size, records)) for k in range(0, records, size)]
    return [epoch[k % len(epoch)] for k in range(work.local_steps(records))]
