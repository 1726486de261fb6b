"""Who takes part in a round."""

from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING, Literal

import torch

from privbench.benchmarks.build import require

if TYPE_CHECKING:
    from privbench.benchmarks.federation.federation import Federation


def cohort(
    clients: int,
    participation: float,
    sampling: Literal["fixed", "poisson"],
    generator: torch.Generator,
    spent: Collection[int] = (),
) -> tuple[int, ...]:
    """Clients invited to a round, in increasing order.

    ``fixed`` draws ``max(1, round(participation * clients))`` without replacement, ``poisson`` each client with
    probability ``participation``, so that a cohort may be empty. Who is ``spent`` has taken part as often as it may,
    or too lately, and is passed over: a fixed cohort is drawn from the others, and smaller where too few are left.
    """
    if sampling == "poisson":
        drawn = torch.rand(clients, generator=generator) < participation
        return tuple(c for c in torch.nonzero(drawn).squeeze(1).tolist() if c not in spent)
    size = max(1, round(participation * clients))
    order = (c for c in torch.randperm(clients, generator=generator).tolist() if c not in spent)
    return tuple(sorted(islice(order, size)))


def answering(invited: tuple[int, ...], dropout: float, generator: torch.Generator) -> tuple[int, ...]:
    """Those of ``invited`` who answer; each drops out with probability ``dropout``."""
    if not dropout:
        return invited
    stays = (torch.rand(len(invited), generator=generator) >= dropout).tolist()
    return tuple(c for c, here in zip(invited, stays, strict=True) if here)


def limits(federation: "Federation") -> None:
    """Refuse a limit on who takes part that leaves no cohort.

    Raises:
        ConfigError: naming the setting.
    """
    settings = federation.settings
    size, apart = max(1, round(settings.participation * federation.clients)), settings.min_separation
    hint = f"at most {federation.clients // size}: a cohort has {size} of {federation.clients} clients"
    require(size * apart <= federation.clients, "federation.min_separation", apart, hint)
