"""The engine of one machine: this process, or a pool of its children that lives as long as the run."""

import multiprocessing
import os
import pickle
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from privbench.benchmarks.conform import require
from privbench.benchmarks.federation.engine import Engine, Item, Origin, Result, WorkerDied, WorkerStuck, portable
from privbench.benchmarks.federation.launch import by_torchrun


@dataclass(frozen=True)
class Processes:
    """This process, or a pool of its children, on this machine."""

    def check(self, clients: int, workers: int | None, channel: Any) -> None:
        world = by_torchrun()
        hint = "distributed under torchrun, which started several ranks of the same run"
        require(world < 2, "federation.engine", "processes", hint)

    def processes(self, clients: int, workers: int | None, parallel_jobs: int) -> int:
        return min(clients, workers or max(1, cores() // parallel_jobs))

    def isolation(self, processes: int) -> str:
        return "same_process" if processes == 1 else "same_host"

    def counted(self, processes: int) -> bool:
        return True

    def gather(self) -> None:
        pass

    def start(
        self, context: Any, processes: int, device: torch.device, apart: bool, origin: Callable[[], Origin]
    ) -> Engine:
        return start(context, processes, device, apart)


class Serial:
    """One client after another, in this process."""

    def __init__(self, context: Any):
        self._context = context

    def map(
        self, function: Callable[[Any, Item], Result], items: Iterable[Item], patience: float | None = None
    ) -> Iterator[Result]:
        for item in items:
            yield function(self._context, item)

    def share(self, name: str, value: Tensor) -> None:
        getattr(self._context, name).copy_(value)

    def close(self) -> None:
        pass


class Pool:
    """Persistent forked workers of one thread each.

    Forking hands the context (data, model) over without copying it. Each worker gets two items ahead, so that it
    never waits for the coordinator; results are put in order within a bounded window. A dead worker is noticed.
    Tensors that are to be shared lie in shared memory before the fork.
    """

    AHEAD = 2
    SMALL = 4096
    """Bytes that a pipe surely takes without a reader."""

    def __init__(self, context: Any, workers: int):
        # torch.optim's first use imports torch._dynamo (a second): before the fork, once.
        import torch.optim  # noqa: F401

        self._context = context
        fork = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._busy: dict[Connection, deque[int]] = {}
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for _ in range(workers):
            here, there = fork.Pipe()
            process = fork.Process(target=_work, args=(there, [*self._pipes, here], context), daemon=True)
            with warnings.catch_warnings():
                # torch's thread pool makes Python 3.12 warn of forking. Workers run one thread, as DataLoader's do.
                warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
                process.start()
            there.close()
            self._pipes.append(here)
            self._busy[here] = deque()
            self._processes.append(process)

    def map(
        self, function: Callable[[Any, Item], Result], items: Iterable[Item], patience: float | None = None
    ) -> Iterator[Result]:
        if not self._pipes:
            raise RuntimeError("this pool is closed")
        self._drain()
        source = iter(items)
        window = 2 * self.AHEAD * len(self._pipes)
        busy = self._busy
        done: dict[int, Any] = {}
        dispatched, yielded = 0, 0
        waiting: bytes | None = None

        def feed() -> None:
            nonlocal dispatched, waiting
            # Breadth first: everybody has one item before anybody has two.
            for depth in range(1, self.AHEAD + 1):
                for pipe, queue in busy.items():
                    if len(queue) >= depth or dispatched - yielded >= window:
                        continue
                    if waiting is None:
                        try:
                            waiting = pickle.dumps((function, next(source)), protocol=5)
                        except StopIteration:
                            return
                    if queue and len(waiting) > self.SMALL:
                        # A busy worker may be writing a long answer itself: both would wait for ever.
                        continue
                    self._send(pipe, waiting)
                    waiting = None
                    queue.append(dispatched)
                    dispatched += 1

        feed()
        while yielded < dispatched:
            while yielded not in done:
                for pipe in self._ready(busy, patience):
                    index = busy[pipe].popleft()
                    done[index] = self._receive(pipe)
                feed()
            yielded += 1
            yield done.pop(yielded - 1)
            feed()

    def share(self, name: str, value: Tensor) -> None:
        getattr(self._context, name).copy_(value)

    def _drain(self) -> None:
        """Take in the answers that an abandoned map left behind: they are not the next one's."""
        for pipe, queue in self._busy.items():
            while queue:
                try:
                    pipe.recv_bytes()
                except (EOFError, OSError):
                    raise self._death(pipe) from None
                queue.popleft()

    def _ready(self, busy: dict[Connection, deque[int]], patience: float | None) -> list[Connection]:
        active = [p for p, q in busy.items() if q]
        if ready := [p for p in wait(active, patience) if isinstance(p, Connection)]:
            return ready
        stuck = [str(self._processes[self._pipes.index(p)].pid) for p in active]
        raise WorkerStuck(f"no answer for {patience:g} s (federation.patience) from worker {' or '.join(stuck)}")

    def _send(self, pipe: Connection, job: bytes) -> None:
        try:
            pipe.send_bytes(job)
        except OSError:
            raise self._death(pipe) from None

    def _receive(self, pipe: Connection) -> Any:
        try:
            ok, value = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._death(pipe) from None
        if not ok:
            raise value
        return value

    def _death(self, pipe: Connection) -> WorkerDied:
        process = self._processes[self._pipes.index(pipe)]
        process.join(timeout=5)
        return WorkerDied(f"worker {process.pid} died with exit code {process.exitcode} (killed, or out of memory)")

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=2)
            if process.is_alive():
                process.terminate()
                process.join()
        self._pipes, self._processes, self._busy = [], [], {}


def _work(pipe: Connection, inherited: list[Connection], context: Any) -> None:
    # Copies of the coordinator's ends would keep a pipe open after the coordinator is gone.
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            function, item = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            answer = (True, function(context, item))
        except KeyboardInterrupt:
            return
        except Exception as error:
            answer = (False, portable(error))
        try:
            pipe.send_bytes(pickle.dumps(answer, protocol=5))
        except OSError:
            return


def start(context: Any, workers: int, device: torch.device, apart: bool = False) -> Engine:
    """A pool for several workers on the CPU, else a serial engine (a GPU's context can't be forked).

    Args:
        apart: clients must not run in this process: a pool also for one worker.
    """
    forks = "fork" in multiprocessing.get_all_start_methods()
    several = workers > 1 or apart
    return Pool(context, workers) if several and device.type == "cpu" and forks else Serial(context)


def warm(_: Any, item: int) -> int:
    """A task that does nothing: a worker that answers has started."""
    return item


def cores() -> int:
    """Cores that this process may use; of a SLURM task those that it asked for, which not every cluster enforces."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(allowed, int(asked)) if asked.isdecimal() and int(asked) else allowed
