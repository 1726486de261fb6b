"""Who takes part in a round."""

from typing import Literal

import torch


def cohort(
    clients: int, participation: float, sampling: Literal["fixed", "poisson"], generator: torch.Generator
) -> tuple[int, ...]:
    """Clients invited to a round, in increasing order.

    ``fixed`` draws ``max(1, round(participation * clients))`` without replacement, ``poisson`` each client with
    probability ``participation``, so that a cohort may be empty.
    """
    if sampling == "poisson":
        drawn = torch.rand(clients, generator=generator) < participation
        return tuple(torch.nonzero(drawn).squeeze(1).tolist())
    size = max(1, round(participation * clients))
    return tuple(sorted(torch.randperm(clients, generator=generator)[:size].tolist()))


def answering(invited: tuple[int, ...], dropout: float, generator: torch.Generator) -> tuple[int, ...]:
    """Those of ``invited`` who answer; each drops out with probability ``dropout``."""
    if not dropout:
        return invited
    stays = (torch.rand(len(invited), generator=generator) >= dropout).tolist()
    return tuple(c for c, here in zip(invited, stays, strict=True) if here)
