"""BlazeFL's own FedAvg (``blazefl.contrib``) on the same work."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import copy
import dataclasses
import functools
import tempfile
from pathlib import Path

import torch
from blazefl.contrib import (
    FedAvgBaseServerHandler,
    FedAvgProcessPoolClientTrainer,
    FedAvgThreadPoolClientTrainer,
)
from blazefl.core import IPCMode, ModelSelector, PartitionedDataset
from torch import Generator, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from privbench.benchmarks.speed.work import Timing, Work, timed


@functools.cache
def model(work: Work) -> nn.Module:
    return work.model()


@functools.cache
def datasets(work: Work) -> list[TensorDataset]:
    train = work.task().data.train
    return [TensorDataset(train.x[share], train.y[share]) for share in work.shares()]


class Models(ModelSelector):
    """The work's model, copied for each client. Holds no tensor: it is pickled for each client of a process."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def select_model(self, model_name: str) -> nn.Module:
        return copy.deepcopy(model(self.work))


class Shares(PartitionedDataset):
    """The work's shares; a batch is fetched by one index, not record by record. Holds no tensor, as above."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def get_dataset(self, type_: str, cid: int | None) -> Dataset:
        assert cid is not None
        return datasets(self.work)[cid]

    def set_dataset(self, type_: str, cid: int | None, dataset: Dataset) -> None:
        """The process trainer hands back what it was given."""

    def get_dataloader(
        self, type_: str, cid: int | None, batch_size: int | None, generator: Generator | None
    ) -> DataLoader:
        dataset = self.get_dataset(type_, cid)
        assert batch_size is not None
        batches = BatchSampler(RandomSampler(dataset, generator=generator), batch_size, drop_last=False)  # type: ignore
        return DataLoader(dataset, batch_size=None, sampler=batches)


def rounds(work: Work, workers: int, mode: str, folder: Path) -> tuple[float, nn.Module]:
    """Seconds of the rounds, and the final model."""
    server = FedAvgBaseServerHandler(
        model_selector=Models(work),
        model_name="work",
        dataset=Shares(work),
        global_round=work.rounds,
        num_clients=work.clients,
        sample_ratio=(work.cohort + 0.5) / work.clients,  # int(clients * ratio) is the cohort
        device="cpu",
        batch_size=work.batch_size,
        seed=work.seed,
    )
    common = {
        "model_selector": Models(work),
        "model_name": "work",
        "dataset": Shares(work),
        "device": "cpu",
        "num_clients": work.clients,
        "epochs": 1,
        "batch_size": work.batch_size,
        "lr": work.learning_rate,
        "seed": work.seed,
        "num_parallels": workers,
    }
    if mode == "processes":
        folders = {"share_dir": folder / "share", "state_dir": folder / "state"}
        clients = FedAvgProcessPoolClientTrainer(**common, **folders, ipc_mode=IPCMode.SHARED_MEMORY)
    else:
        clients = FedAvgThreadPoolClientTrainer(**common)

    def loop() -> None:
        while not server.if_stop():
            cohort = server.sample_clients()
            clients.local_process(server.downlink_package(), cohort)
            for package in clients.uplink_package():
                server.load(package)

    return timed(loop), server.model


def run(work: Work, workers: int, mode: str) -> Timing:
    """Time BlazeFL.

    ``mode`` is ``threads``, which its documentation recommends (Python's global lock allows them only part of the
    cores), or ``processes``. BlazeFL starts its pool of either anew each round, so that start is in the seconds.
    """
    datasets(work)  # before the fork
    torch.optim.SGD(model(work).parameters())  # imports torch._dynamo: otherwise each process of each round does
    with tempfile.TemporaryDirectory() as folder:
        warm = dataclasses.replace(work, cohort=min(2 * workers, work.clients), rounds=1)
        rounds(warm, workers, mode, Path(folder) / "warm")
        seconds, final = rounds(work, workers, mode, Path(folder) / "run")
    return Timing(seconds, work.task().evaluate(final)["accuracy"])
