"""Our federation against a plain PyTorch loop and, where they are installed, other simulators.

    python -m privbench.benchmarks.speed.federation [--repeats 5] [--rounds 20] [--workers 2] [--out FILE]

The same work, models and data in one process run; contenders take turns; one thread a process.
"""

import argparse
import copy
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.client import ClientSide
from privbench.benchmarks.federation.engine import Engine
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.speed import peers
from privbench.benchmarks.speed.work import Contender, Timing, Work, interleave, table, timed

PLAIN = "plain sequential PyTorch"


def plain(work: Work) -> Timing:
    """FedAvg as a researcher would write it: a DataLoader, an nn.Module and torch.optim a client, a weighted mean."""
    task, shares, model = work.task(), work.shares(), work.model()
    train = task.data.train
    loaders = [DataLoader(TensorDataset(train.x[s], train.y[s]), work.batch_size, shuffle=True) for s in shares]

    def rounds() -> None:
        for _ in range(work.rounds):
            states, sizes = [], []
            for client in torch.randperm(work.clients)[: work.cohort].tolist():
                local = copy.deepcopy(model)
                optimizer = torch.optim.SGD(local.parameters(), lr=work.learning_rate)
                local.train()
                for x, y in loaders[client]:
                    optimizer.zero_grad()
                    F.cross_entropy(local(x), y).backward()
                    optimizer.step()
                states.append(local.state_dict())
                sizes.append(len(shares[client]))
            total = sum(sizes)
            mean = {k: sum(s[k] * (n / total) for s, n in zip(states, sizes, strict=True)) for k in states[0]}
            model.load_state_dict(mean)

    torch.manual_seed(work.seed)
    return Timing(timed(rounds), task.evaluate(model)["accuracy"])


def indexed(work: Work) -> Timing:
    """The same loop without DataLoader: batches are slices of a permuted tensor. The stricter baseline."""
    task, shares, model = work.task(), work.shares(), work.model()
    train = task.data.train
    data = [(train.x[s], train.y[s]) for s in shares]

    def train_client(client: int) -> nn.Module:
        local = copy.deepcopy(model)
        optimizer = torch.optim.SGD(local.parameters(), lr=work.learning_rate)
        x, y = data[client]
        for index in torch.randperm(len(y)).split(work.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(local(x[index]), y[index]).backward()
            optimizer.step()
        return local

    def rounds() -> None:
        for _ in range(work.rounds):
            cohort = torch.randperm(work.clients)[: work.cohort].tolist()
            states = [train_client(c).state_dict() for c in cohort]
            model.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})

    torch.manual_seed(work.seed)
    return Timing(timed(rounds), task.evaluate(model)["accuracy"])


def made(work: Work) -> Federation:
    """The work, as a federation of privbench's."""
    settings = FederationSettings(
        clients=work.clients,
        rounds=work.rounds,
        participation=work.cohort / work.clients,
        local=LocalWork(learning_rate=work.learning_rate, batch_size=work.batch_size),
    )
    return Federation(settings, work.task(), work.model(), seed=work.seed)


def trained(federation: Federation, begin: Callable[[ClientSide], Engine], processes: int) -> Timing:
    """It, on the engine that ``begin`` makes; its start is set-up, as data loading is."""
    side, state = federation.client_side(), federation.start()
    engine = begin(side)
    try:
        list(engine.map(engines.warm, range(2 * processes)))
        seconds = timed(lambda: [None for _ in federation.run(state, side, engine)] and None)
    finally:
        engine.close()
    federation.layout.write(state.model, federation.model)
    return Timing(seconds, federation.task.evaluate(federation.model)["accuracy"])


def ours(workers: int) -> Contender:
    """privbench's federation with so many workers."""
    return lambda work: trained(made(work), lambda side: engines.start(side, workers, torch.device("cpu")), workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=engines.cores())
    parser.add_argument("--cohorts", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    contenders: dict[str, Contender] = {
        PLAIN: plain,
        "the same without DataLoader": indexed,
        "privbench, 1 worker": ours(1),
        f"privbench, {options.workers} workers": ours(options.workers),
        **peers.installed(options.workers),
    }
    text = f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; speed is against the plain loop\n"
    for cohort in options.cohorts:
        work = Work(cohort=cohort, rounds=options.rounds)
        for contender in contenders.values():
            contender(Work(cohort=2, rounds=1))  # imports and caches, not counted
        text += "\n" + table(interleave(contenders, work, options.repeats), work, PLAIN) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
