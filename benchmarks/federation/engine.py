"""Engines run client functions: in this process, or in a pool of processes that lives as long as the run."""

import multiprocessing
import os
import pickle
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from privbench.benchmarks.conform import require
from privbench.benchmarks.federation.launch import by_torchrun

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Maps a function of (context, item) over items, in order; the context was given when the engine was made."""

    def map(
        self, function: Callable[[Any, Item], Result], items: Iterable[Item], patience: float | None = None
    ) -> Iterator[Result]:
        """Results in the order of ``items``, lazily; at most a window of them exists at a time.

        One map at a time: a new one ends the one before.

        Args:
            patience: seconds in which no worker answers, after which one counts as stuck; ``None`` waits for ever.
        """
        ...

    def share(self, name: str, value: Tensor) -> None:
        """Copy ``value`` into the context's tensor of that name, for all functions that are mapped from now on."""
        ...

    def close(self) -> None:
        """Give workers back. Safe to call twice."""
        ...


@dataclass(frozen=True)
class Origin:
    """What a process that inherits nothing makes the same context of.

    Args:
        config: the run's, resolved.
        per_sample: how clipped gradients are computed, as measured where the run began.
        facts: of code, data and initial model, which have to be the same in all processes.
    """

    config: Mapping[str, Any]
    per_sample: str | None
    facts: Mapping[str, Any]


class EngineSettings(Protocol):
    """Where a run's clients train: a configuration, which starts an :class:`Engine` for each run."""

    def check(self, clients: int, workers: int | None, channel: Any) -> None:
        """Refuse a run that can't train there.

        Args:
            clients: of the federation.
            workers: the setting.
            channel: the defense's.

        Raises:
            ConfigError: naming what would be right.
        """
        ...

    def processes(self, clients: int, workers: int | None, parallel_jobs: int) -> int:
        """How many processes run clients, where ``parallel_jobs`` runs share this machine."""
        ...

    def isolation(self, processes: int) -> str:
        """What separates the server from the clients that are nearest to it."""
        ...

    def counted(self, processes: int) -> bool:
        """Whether this process has started all that run clients: only of those are CPU seconds and memory known."""
        ...

    def gather(self) -> None:
        """Have those who wait for work come, also where there is none: they learn so when this process ends."""
        ...

    def start(
        self, context: Any, processes: int, device: torch.device, apart: bool, origin: Callable[[], Origin]
    ) -> Engine:
        """Begin a run.

        Args:
            context: this process's.
            device: where clients train.
            apart: clients must not run in this process.
            origin: of the same context, for processes that don't inherit it.
        """
        ...


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


class WorkerDied(RuntimeError):
    """A worker process ended without an answer (killed, out of memory)."""


class WorkerStuck(RuntimeError):
    """No worker process has answered for as long as was to be waited."""


class ClientFailed(RuntimeError):
    """A client function raised; the message holds its traceback."""


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


def portable(error: Exception) -> Exception:
    """The error itself if it is the suite's own and survives pickling, else its traceback."""
    if type(error).__module__.startswith("privbench."):
        try:
            return pickle.loads(pickle.dumps(error))
        except Exception:  # an error with a constructor of its own
            return ClientFailed(traceback.format_exc())
    return ClientFailed(traceback.format_exc())


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
