"""pfl-research's FedAvg on the same work, in one process or under torchrun."""

# pyright: reportMissingImports=false

import dataclasses

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F

from privbench.benchmarks.speed.work import Timing, Work, timed


class Trained(nn.Module):
    """The work's model as pfl wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Nothing: pfl evaluates every client of round 0 twice, which no other contender does."""
        return {}


def rounds(work: Work) -> tuple[float, nn.Module]:
    """Seconds of the rounds, and the final model.

    pfl's data sets don't shuffle, so a client's records are permuted each time it takes part.
    """
    train = work.task().data.train
    data = [(train.x[share], train.y[share]) for share in work.shares()]

    def dataset(user: int) -> PyTorchTensorDataset:
        x, y = data[user]
        order = torch.randperm(len(y))
        return PyTorchTensorDataset((x[order], y[order]), user_id=str(user))

    np.random.seed(work.seed)  # noqa: NPY002 (pfl draws from it)
    torch.manual_seed(work.seed)
    users = FederatedDataset(dataset, get_user_sampler("minimize_reuse", list(range(work.clients))))
    module = Trained(work.model())
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    algorithm = NNAlgorithmParams(
        central_num_iterations=work.rounds,
        evaluation_frequency=work.rounds + 1,
        train_cohort_size=work.cohort,
        val_cohort_size=None,
    )
    training = NNTrainHyperParams(
        local_batch_size=work.batch_size, local_num_epochs=1, local_learning_rate=work.learning_rate
    )
    backend = SimulatedBackend(training_data=users, val_data=users)

    def loop() -> None:
        FederatedAveraging().run(
            algorithm,
            backend,
            model,
            training,
            NNEvalHyperParams(local_batch_size=None),
            send_metrics_to_platform=False,
        )

    return timed(loop), module.model


def run(work: Work, workers: int, mode: str) -> Timing | None:
    """Time pfl: each process of torchrun trains its part of a cohort; rank 0 has the result.

    Clients take turns (pfl's ``minimize_reuse``, which its documentation recommends), they are not drawn. The seconds
    include pfl's metrics of its rounds, but no evaluation.
    """
    rounds(dataclasses.replace(work, cohort=min(2 * workers, work.clients), rounds=1))
    seconds, final = rounds(work)
    if get_framework_module().distributed.global_rank:
        return None
    return Timing(seconds, work.task().evaluate(final)["accuracy"])
