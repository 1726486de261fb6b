"""What an engine is: it runs client functions, wherever that is, and hands their results on in order."""

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

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


class WorkerDied(RuntimeError):
    """A worker process ended without an answer (killed, out of memory)."""


class WorkerStuck(RuntimeError):
    """No worker process has answered for as long as was to be waited."""


class ClientFailed(RuntimeError):
    """A client function raised; the message holds its traceback."""


def portable(error: Exception) -> Exception:
    """The error itself if it is the suite's own and survives pickling, else its traceback."""
    if type(error).__module__.startswith("privbench."):
        try:
            return pickle.loads(pickle.dumps(error))
        except Exception:  # an error with a constructor of its own
            return ClientFailed(traceback.format_exc())
    return ClientFailed(traceback.format_exc())
