"""The engine of many machines: client functions run in the ranks that torchrun or srun launched."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from privbench.benchmarks.conform import require
from privbench.benchmarks.federation.engine import ClientFailed, Engine, Item, Origin, Result, WorkerStuck, portable
from privbench.benchmarks.federation.group import Group, leave_now
from privbench.benchmarks.federation.launch import launched
from privbench.benchmarks.federation.meeting import RankLost
from privbench.benchmarks.federation.processes import Serial

AHEAD = 2
"""Chunks that a rank has: one that it works on, and the next."""


@dataclass(frozen=True)
class Distributed:
    """The ranks of torchrun or srun, over gloo. Each runs one thread; rank 0 coordinates, records and trains with them.

    Args:
        timeout: seconds without a sign of life after which a rank counts as gone and the run stops, > 0.
        meeting: seconds in which all ranks have to come, > 0: rank 0 checks a whole sweep before.
        chunk: clients that a rank is given at a time, at least 1.
    """

    timeout: float = 60.0
    meeting: float = 600.0
    chunk: int = 1

    def __post_init__(self) -> None:
        for name in ("timeout", "meeting"):
            require(getattr(self, name) > 0, name, getattr(self, name), "seconds, more than 0")
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, clients: int, workers: int | None, channel: Any) -> None:
        world = launched().world
        require(workers is None, "federation.workers", workers, "null with federation/engine=distributed: ranks train")
        hint = f"at most {clients}, the number of clients: the others would never train"
        require(world <= clients, "WORLD_SIZE", world, hint)
        hint = "plaintext or secagg with federation/engine=distributed: its guests are processes of one host"
        require(not channel.apart, "defense.channel", type(channel).__name__.lower(), hint)

    def processes(self, clients: int, workers: int | None, parallel_jobs: int) -> int:
        return launched().world

    def isolation(self, processes: int) -> str:
        return "same_process"  # rank 0 trains, too

    def counted(self, processes: int) -> bool:
        return processes == 1  # a launcher has started the other ranks

    def gather(self) -> None:
        with suppress(RankLost):
            member(self)

    def start(
        self, context: Any, processes: int, device: torch.device, apart: bool, origin: Callable[[], Origin]
    ) -> Engine:
        group = member(self)
        return Ranks(context, group, self.chunk, origin()) if group.others else Serial(context)


@dataclass(frozen=True)
class Begin:
    """Start ``number``: make a run's context of ``origin``."""

    number: int
    origin: Origin


@dataclass(frozen=True)
class Began:
    """A rank has made start ``number``, and what it found; ``error`` if it couldn't."""

    number: int
    facts: dict[str, Any]
    error: Exception | None = None


@dataclass(frozen=True)
class Share:
    """The context's tensor ``name`` is now ``value``."""

    name: str
    value: Any


@dataclass(frozen=True)
class Work:
    """Chunk ``number`` of the coordinator's map ``turn``."""

    turn: int
    number: int
    function: Callable[[Any, Any], Any]
    items: list[Any]


@dataclass(frozen=True)
class Done:
    """What became of it: results, or an error."""

    turn: int
    number: int
    results: list[Any]
    error: Exception | None = None


_starts = count()


class Ranks:
    """Client functions in all ranks, this one included; results in order within a bounded window.

    Args:
        context: this rank's.
        group: the others.
        chunk: items that a rank is given at a time.
        origin: what the others make their contexts of.

    Raises:
        ClientFailed: if one of them can't.
        RankDiffers: if it makes another one.
    """

    def __init__(self, context: Any, group: Group, chunk: int, origin: Origin):
        # torch.optim's first use imports torch._dynamo (a second).
        import torch.optim  # noqa: F401

        self._context, self._group, self._chunk, self._turn, self._open = context, group, chunk, 0, True
        start = next(_starts)
        group.post(Begin(start, origin))
        waiting = set(group.others)
        while waiting:
            found = group.take()
            assert found is not None
            rank, answer = found
            # Else it is of a run before, which ended in the middle of a map or of its start.
            if isinstance(answer, Began) and answer.number == start:
                self._compare(rank, answer, origin)
                waiting.remove(rank)

    def _compare(self, rank: int, began: Began, origin: Origin) -> None:
        name = self._group.names[rank]
        if began.error is not None:
            raise ClientFailed(f"{name}: {began.error}")
        for key, mine in origin.facts.items():
            theirs = began.facts.get(key)
            if theirs != mine:
                raise RankDiffers(f"{name} has {key} {theirs}, rank 0 has {mine}: all ranks need the same")

    def share(self, name: str, value: Tensor) -> None:
        getattr(self._context, name).copy_(value)
        self._group.post(Share(name, value.numpy()))

    def map(
        self, function: Callable[[Any, Item], Result], items: Iterable[Item], patience: float | None = None
    ) -> Iterator[Result]:
        if not self._open:
            raise RuntimeError("this engine is closed")
        self._turn += 1  # answers to a map before are nobody's
        group, source = self._group, iter(items)
        mine: deque[tuple[int, list[Item]]] = deque()
        busy = {0: 0} | dict.fromkeys(group.others, 0)
        window = 2 * AHEAD * len(busy)
        done: dict[int, list[Result]] = {}
        dispatched, yielded = 0, 0

        def feed() -> None:
            nonlocal dispatched
            # Breadth first: everybody has one chunk before anybody has two.
            for depth in range(1, AHEAD + 1):
                for rank in busy:
                    if busy[rank] >= depth or dispatched - yielded >= window:
                        continue
                    if not (chunk := list(islice(source, self._chunk))):
                        return
                    if rank == 0:
                        mine.append((dispatched, chunk))
                    else:
                        group.post(Work(self._turn, dispatched, function, chunk), rank)
                    busy[rank] += 1
                    dispatched += 1

        feed()
        while yielded < dispatched:
            while yielded not in done:
                if mine:
                    number, chunk = mine.popleft()
                    done[number] = self._own(function, chunk)
                    busy[0] -= 1
                    wait = 0.0
                else:
                    wait = patience
                self._collect(done, busy, wait)
                feed()
            yielded += 1
            yield from done.pop(yielded - 1)
            feed()

    def _own(self, function: Callable[[Any, Item], Result], chunk: list[Item]) -> list[Result]:
        results, error = _worked(self._context, function, chunk)
        if error is not None:
            raise _named(error, self._group.names[0])
        return results

    def _collect(self, done: dict[int, list[Any]], busy: dict[int, int], patience: float | None) -> None:
        """Take in what has come; wait for something unless ``patience`` is 0."""
        found = self._group.take(patience)
        if found is None and patience != 0:
            late = ", ".join(self._group.names[r] for r, chunks in busy.items() if chunks)
            raise WorkerStuck(f"no answer for {patience:g} s (federation.patience) from {late}")
        while found is not None:
            rank, answer = found
            if answer.turn == self._turn:
                busy[rank] -= 1
                if answer.error is not None:
                    raise _named(answer.error, self._group.names[rank])
                done[answer.number] = answer.results
            found = self._group.take(0)

    def close(self) -> None:
        self._open = False


class RankDiffers(RuntimeError):
    """A rank would compute something else: other code, data or versions."""


def _worked(context: Any, function: Callable[[Any, Any], Any], items: list[Any]) -> tuple[list[Any], Exception | None]:
    results = []
    for item in items:
        try:
            results.append(function(context, item))
        except Exception as error:
            return [], portable(error)
    return results, None


def _named(error: Exception, name: str) -> Exception:
    """The error, which says whose it is."""
    if isinstance(error, ClientFailed):
        return ClientFailed(f"{str(error).rstrip()}\n{name}: {str(error).strip().splitlines()[-1]}")
    error.add_note(f"in {name}")
    return error


def serve(group: Group, make: Callable[[Origin], tuple[Any, dict[str, Any]]]) -> NoReturn:
    """What a rank other than 0 does until it is told goodbye, which ends its process.

    Args:
        make: the context of a run, and facts that have to be rank 0's.
    """
    import torch.optim

    torch.set_num_threads(1)
    context = None
    while True:
        found = group.take()
        assert found is not None
        match found[1]:
            case Begin(number, origin):
                try:
                    context, facts = make(origin)
                    group.post(Began(number, facts))
                except Exception as error:
                    group.post(Began(number, {}, RuntimeError(f"{type(error).__name__}: {error}")))
            case Share(name, value):
                getattr(context, name).copy_(torch.from_numpy(value))
            case Work(turn, number, function, items):
                group.post(Done(turn, number, *_worked(context, function, items)))


_member: Group | None = None


def member(settings: Distributed) -> Group:
    """This process's group, joined at first use: the runs of a sweep share it."""
    global _member
    if _member is None:
        _member = Group(launched(), settings.timeout, settings.meeting)
    _member.check()
    return _member


def leave(status: int) -> None:
    """Part from the other ranks, if there are any; where one is gone, this process ends here with ``status``."""
    global _member
    if _member is not None:
        _member.close()
        if _member.lost:
            leave_now(status)
        _member = None
