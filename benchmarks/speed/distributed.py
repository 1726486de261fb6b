"""The engine of ranks against the pool of workers: the same work with as many processes, in one process run.

    python -m privbench.benchmarks.speed.distributed [--repeats 5] [--rounds 20] [--processes 2] [--chunks 1 4]

Both take turns on loopback, one thread a process; both end with the same model, or the script does.
"""

import argparse
import multiprocessing
import os
import platform
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from privbench.benchmarks.federation.distributed import Ranks, serve
from privbench.benchmarks.federation.engine import Origin
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.group import Group
from privbench.benchmarks.federation.launch import Launch
from privbench.benchmarks.federation.processes import cores
from privbench.benchmarks.speed.federation import made, ours, trained
from privbench.benchmarks.speed.work import Contender, Timing, Work, interleave, table

PATIENCE = 60.0
"""Seconds in which ranks meet, and without a sign of life after which one is gone."""


def ranks(processes: int, chunk: int) -> Contender:
    """privbench's federation on so many ranks, each given ``chunk`` clients at a time."""

    def run(work: Work) -> Timing:
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        federation, port = made(work), _free_port()
        started = [
            fork.Process(target=_rank, args=(Launch(rank, processes, "127.0.0.1", port), federation, chunk, there))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        there.close()
        try:
            return here.recv()
        finally:
            for process in started:
                process.join()

    return run


def _rank(launch: Launch, federation: Federation, chunk: int, answer: Connection) -> None:
    torch.set_num_threads(1)
    group = Group(launch, PATIENCE, PATIENCE)
    if launch.rank:
        serve(group, lambda origin: (federation.client_side(), {}))
    origin = Origin({}, None, {})
    answer.send(trained(federation, lambda side: Ranks(side, group, chunk, origin), launch.world))
    group.close()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--cohorts", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool = f"pool of {options.processes} workers"
    contenders = {pool: ours(options.processes)}
    contenders |= {f"{options.processes} ranks, chunk {n}": ranks(options.processes, n) for n in options.chunks}
    text = f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; speed is against the pool\n"
    for cohort in options.cohorts:
        work = Work(cohort=cohort, rounds=options.rounds)
        for contender in contenders.values():
            contender(Work(cohort=2, rounds=1))  # imports and caches, not counted
        timings = interleave(contenders, work, options.repeats)
        accuracies = {timing.accuracy for runs in timings.values() for timing in runs}
        if len(accuracies) > 1:
            raise SystemExit(f"the engines differ in accuracy: {sorted(accuracies)}")
        text += "\n" + table(timings, work, pool) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
