"""Who takes part in a round."""

from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING, Literal

import torch

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import chosen, stream
from privbench.benchmarks.shares import cohort_size
from privbench.defenses.accounting import ClientPlan

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
        drawn = chosen(clients, participation, generator)
        return tuple(c for c in torch.nonzero(drawn).squeeze(1).tolist() if c not in spent)
    size = cohort_size(participation, clients)
    order = (c for c in torch.randperm(clients, generator=generator).tolist() if c not in spent)
    return tuple(sorted(islice(order, size)))


def drawn(federation: "Federation", number: int, spent: Collection[int] = (), attempt: int = 1) -> tuple[int, ...]:
    """The cohort of an attempt at round ``number``, with the poisoner's clients where its schedule wants them."""
    settings, generator = federation.settings, stream(federation.seed, "cohort", number, attempt=attempt)
    poisoner, attackers = federation.poisoner, federation.attackers
    if poisoner is None or poisoner.schedule.invited == "as_others":
        return cohort(federation.clients, settings.participation, federation.sampling, generator, spent)
    honest = federation.clients - len(attackers)
    present = poisoner.schedule.attackers(number, federation.seed, attackers)
    if federation.sampling == "poisson":  # every honest client as it would be without the poisoner
        return cohort(honest, settings.participation, "poisson", generator, spent) + present
    size = min(honest, cohort_size(settings.participation, federation.clients) - len(present))
    return cohort(honest, size / honest, "fixed", generator, spent) + present if size else present


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
    size, apart = cohort_size(settings.participation, federation.clients), settings.min_separation
    hint = f"at most {federation.clients // size}: a cohort has {size} of {federation.clients} clients"
    require(size * apart <= federation.clients, "federation.min_separation", apart, hint)
    _places(federation, size)


def _places(federation: "Federation", size: int) -> None:
    """Refuse attackers who never attack, or who choose their rounds where they can't."""
    poisoner, settings = federation.poisoner, federation.settings
    if poisoner is None:
        return
    start, last = poisoner.schedule.start, settings.rounds
    require(start <= last, "poisoning.schedule.start", start, f"at most {last}, the last round, or nothing is attacked")
    if poisoner.schedule.invited == "as_others":
        return
    field, value, own = "poisoning.schedule.invited", poisoner.schedule.invited, len(federation.attackers)
    together = 1 if poisoner.schedule.in_turn else own
    limited = settings.max_participations is not None or settings.min_separation > 1
    require(not limited, field, value, "as_others where federation limits who takes part how often")
    # In a fixed cohort, places that the poisoner's clients leave are the others', who are then drawn more often.
    counted = federation.plan is None or federation.sampling == "poisson"
    require(
        counted, field, value, "as_others, or sampling=poisson, under a guarantee that counts how clients are drawn"
    )
    # Who stays away takes its noise along, which epsilon counts in every sum.
    plan = federation.plan if isinstance(federation.plan, ClientPlan) else None
    hint = f"as_others: every sum is counted on to hold the noise of {plan.shares if plan else 0} clients"
    sound = plan is None or plan.tolerates(own) or own <= round(plan.expected) - plan.needed
    require(sound, field, value, hint)
    cohort = f"a cohort has {size} of {federation.clients} clients"
    require(federation.sampling == "poisson" or together <= size, "poisoning.clients", own, f"at most {size}: {cohort}")
    require(own < federation.clients, "poisoning.clients", own, "fewer than all, who stay away between attacks")
