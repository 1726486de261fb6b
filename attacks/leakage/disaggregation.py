"""Gradient disaggregation (Lam, Wei, Brooks, Reddi and Mitzenmacher, ICML 2021).

Over rounds, released models give one equation each: the aggregate of round t is ``r_t = sum_c P_tc u_c``. Whoever knows
who took part (here the operator does, the paper reconstructs it: :mod:`~privbench.attacks.leakage.participants`) solves
for one client's update. It presumes that a client's update changes little between rounds.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from privbench.attacks.leakage.observe import Observation, enrolled, hidden, noise_left, per_step, step_of
from privbench.benchmarks.federation.view import RoundView, View

TOLERANCE = 1e-8
"""How far the combination of rounds may be from the victim alone, in weights of clients."""


@dataclass(frozen=True)
class System:
    """``releases = participation @ updates``: T rounds, n clients that are hidden in one of them or more.

    Args:
        rounds: what was seen of them.
        clients: by column.
        participation: ``(T, n)``, each row the weights of the mean that was released, which sum to 1.
        releases: ``(T, p)`` float64, means of what hidden clients sent; colluders' updates are subtracted.
    """

    rounds: tuple[RoundView, ...]
    clients: tuple[int, ...]
    participation: np.ndarray
    releases: Tensor

    def combination(self, client: int) -> np.ndarray | None:
        """``a`` of shape ``(T,)`` with ``a @ participation`` one for ``client`` and zero for all others, of least norm.

        It is the client's row of the pseudo-inverse: least squares, with the least amplification of noise that is
        independent between rounds. ``None`` where these rounds don't tell the client from others.
        """
        if client not in self.clients:
            return None
        column = self.clients.index(client)
        a = np.linalg.pinv(self.participation)[column]
        wanted = np.eye(len(self.clients))[column]
        return a if np.abs(a @ self.participation - wanted).max() <= TOLERANCE * max(1.0, np.abs(a).sum()) else None


def system(view: View, rounds: Collection[int] | None = None) -> System | None:
    """The equations that ``view`` holds.

    Args:
        rounds: those to use, ``None`` for all.

    Returns:
        ``None`` where the adversary doesn't see who took part and what was released, or no weighted mean was made.
    """
    mixture = view.public.mixture
    if mixture is None:
        return None
    kept, shares, releases = [], [], []
    for seen in view.rounds:
        left = hidden(seen)
        if (rounds is not None and seen.round not in rounds) or mixture.total(left) <= 0:
            continue
        moved = step_of(view, seen)
        rest = None if moved is None or not moved.undone else moved.others(mixture, seen)
        if rest is None:
            continue
        kept.append(seen)
        shares.append({c: mixture.weights[c] / mixture.total(left) for c in left})
        releases.append(rest)
    if not kept:
        return None
    clients = tuple(sorted({c for row in shares for c in row}))
    matrix = np.array([[row.get(c, 0.0) for c in clients] for row in shares])
    return System(tuple(kept), clients, matrix, torch.stack(releases))


def disaggregate(view: View, client: int, rounds: Collection[int] | None = None) -> Observation | None:
    """``client``'s gradient, averaged over the rounds in which it took part.

    The combination of rounds that leaves this client alone also combines the models at which its gradients were taken:
    to first order, the result is the gradient at that model, which the observation names. What the other clients'
    updates change between rounds stays as an error.

    Returns:
        ``None`` where the rounds don't tell the client from the others, or the adversary lacks what :func:`system`
        needs.
    """
    equations = system(view, rounds)
    a = None if equations is None else equations.combination(client)
    if equations is None or a is None:
        return None
    public = view.public
    own = a * equations.participation[:, equations.clients.index(client)]
    vector = torch.as_tensor(a) @ equations.releases
    models = [seen.received.get(client, seen.sent) for seen in equations.rounds]
    model = sum(float(w) * m.double() for w, m in zip(own, models, strict=True) if w and m is not None)
    assert isinstance(model, Tensor)  # the client took part in a round, or it would have no column
    records, counted = enrolled(public, (client,))
    steps = public.local_steps(records)
    local, known = public.known("update", client), public.known("release", client)
    noises = np.array([noise_left(public, seen, client) for seen in equations.rounds])
    known = replace(
        known,
        clip=local.clip or known.clip,
        step_noise_std=local.step_noise_std * sqrt(float((own**2).sum())),
        noise_std=sqrt(float(((a * noises) ** 2).sum())),
    )
    gradient = per_step(vector, public.kind, public, steps).float()
    # Each round draws anew, and the truth is what any of them drew.
    behind = min(records, public.visited(records) * sum(bool(w) for w in own)) if counted else records
    return Observation(gradient, model.float(), behind, "disaggregated", False, steps, known=known, counted=counted)
