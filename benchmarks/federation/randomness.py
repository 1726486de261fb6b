"""Named random streams: the same numbers for any number of workers, in any order of execution."""

import hashlib

import torch
from torch import Tensor

_CELLS = 2**24
"""Of float32 uniforms, which are whole multiples of one over it."""


def stream(seed: int, purpose: str, round: int = 0, client: int = -1, attempt: int = 1) -> torch.Generator:
    """A CPU generator that depends on these five values and on nothing else.

    Args:
        seed: the run's seed.
        purpose: what it is drawn for (``"batches"``, ``"noise"``, ...): streams never share.
        round: communication round, from 1; 0 before the first.
        client: client index, -1 for the server.
        attempt: at the round, from 1, where each draws its own.
    """
    again = f"|{attempt}" if attempt > 1 else ""
    digest = hashlib.blake2b(f"{seed}|{purpose}|{round}|{client}{again}".encode(), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") & (2**63 - 1))
    return generator


def chosen(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """Which of ``count`` units a Poisson sample holds, ``(count,)`` bool: each by itself with probability ``rate``.

    A float32 uniform says in which of 2^24 cells a draw lies; in the cell that ``rate`` divides a second one of 53 bits
    decides, so that a small rate isn't rounded to whole cells.
    """
    cell, edge = torch.rand(count, generator=generator).double() * _CELLS, rate * _CELLS
    below, divided = cell + 1 <= edge, (cell < edge) & (edge < cell + 1)
    if bool(divided.any()):
        fine = torch.rand(int(divided.sum()), dtype=torch.float64, generator=generator)
        below[divided] = fine < edge - cell[divided]
    return below
