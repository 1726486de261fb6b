"""Flower's simulation (Ray) of FedAvg on the same work."""

# pyright: reportMissingImports=false

import copy
import dataclasses
import functools
import random

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn
from torch.nn import functional as F

from privbench.benchmarks.speed.work import Timing, Work, timed

client = ClientApp()


@functools.cache
def model(work: Work) -> nn.Module:
    return work.model()


@functools.cache
def data(work: Work) -> list[tuple[Tensor, Tensor]]:
    train = work.task().data.train
    return [(train.x[share], train.y[share]) for share in work.shares()]


@client.train()
def train(message: Message, context: Context) -> Message:
    """One client's epoch, in a Ray actor that keeps the data of its earlier clients."""
    torch.set_num_threads(1)
    config = dict(message.content["config"])
    work = Work(**{f.name: config[f.name] for f in dataclasses.fields(Work)})
    local = model(work)
    local.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(local.parameters(), lr=work.learning_rate)
    x, y = data(work)[int(context.node_config["partition-id"])]
    for index in torch.randperm(len(y)).split(work.batch_size):
        optimizer.zero_grad()
        F.cross_entropy(local(x[index]), y[index]).backward()
        optimizer.step()
    content = {"arrays": ArrayRecord(local.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(content=RecordDict(content), reply_to=message)


def replies(records: list[RecordDict], weight: str) -> MetricRecord:
    """Count a round's replies: Flower averages those it got and goes on."""
    return MetricRecord({"replies": len(records)})


def rounds(grid: Grid, initial: nn.Module, work: Work, cohort: int, count: int) -> dict[str, Tensor]:
    """The state after ``count`` rounds of ``cohort`` clients.

    Raises:
        RuntimeError: if a client failed.
    """
    strategy = FedAvg(
        fraction_train=(cohort + 0.5) / work.clients,  # int(clients * fraction) is the cohort
        fraction_evaluate=0.0,
        min_train_nodes=cohort,
        min_available_nodes=work.clients,
        train_metrics_aggr_fn=replies,
    )
    config = ConfigRecord(dataclasses.asdict(work))
    result = strategy.start(grid, ArrayRecord(initial.state_dict()), num_rounds=count, train_config=config)
    counts = [metrics["replies"] for metrics in result.train_metrics_clientapp.values()]
    if counts != [cohort] * count:
        raise RuntimeError(f"Flower lost clients: {counts} replies a round, {cohort} expected")
    return result.arrays.to_torch_state_dict()


def run(work: Work, workers: int, mode: str) -> Timing:
    """Time Flower with ``workers`` Ray actors of one CPU each.

    A round of ``4 * workers`` clients (at most all) comes first: Ray, its actors, their imports and data are set-up.
    The seconds include Flower's log lines and its polling for replies, which can't be separated.
    """
    server, final, seconds = ServerApp(), copy.deepcopy(model(work)), []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        random.seed(work.seed)
        rounds(grid, model(work), work, min(4 * workers, work.clients), 1)

        def loop() -> None:
            final.load_state_dict(rounds(grid, model(work), work, work.cohort, work.rounds))

        seconds.append(timed(loop))

    run_simulation(
        server,
        client,
        num_supernodes=work.clients,
        backend_config={"init_args": {"num_cpus": workers}, "client_resources": {"num_cpus": 1, "num_gpus": 0}},
    )
    return Timing(seconds[0], work.task().evaluate(final)["accuracy"])
