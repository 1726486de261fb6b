"""Rules that look at where updates point: FLTrust, FoolsGold, FLAME."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privbench.benchmarks.build import require
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.server import RoundContext
from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.cohort import Cohort, CohortRule, Decision
from privbench.defenses.noise import gaussian

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Facts


def cosines(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine similarities among the rows of ``x`` (n, d), ``(n, n)``, and their norms, ``(n,)``; float64.

    A row of zeros is similar to none.
    """
    gram = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for part in geometry.chunks(x.shape[1]):
        # In float64: rows may be much shorter than others, and FLTrust makes them as long as these, with what is off.
        with geometry.one_thread():
            gram += geometry.products(x[:, part].to(torch.float64))
    lengths = gram.diagonal().sqrt()
    tiny = torch.finfo(torch.float64).tiny
    # One length after the other: their product may be too small for a number.
    similar = gram / lengths[:, None].clamp(min=tiny) / lengths.clamp(min=tiny)
    return similar.clamp_(-1, 1), lengths


def fltrust(x: Tensor, root: Tensor) -> Tensor:
    """Updates of the root's length, weighted by their similarity to it if positive (Cao et al. 2021), ``(d,)``.

    Args:
        x: ``(n, d)``, finite.
        root: the update of the server's own clean data, ``(d,)``.
    """
    return geometry.weighted(fltrust_weights(torch.cat([root[None], x])), x)


def fltrust_weights(rows: Tensor) -> Tensor:
    """Weights ``(n,)`` of the rows behind the first, which is the root's; all 0 where none points its way."""
    similar, lengths = cosines(rows)
    trust = similar[0, 1:].clamp(min=0)
    if not bool(trust.any()):
        return trust
    return trust * lengths[0] / lengths[1:].clamp(min=torch.finfo(torch.float64).tiny) / trust.sum()


def foolsgold_weights(similar: Tensor, confidence: float = 1.0) -> Tensor:
    """How far each client is believed, in [0, 1] (Fung et al. 2020, algorithm 1), ``(n,)``.

    Args:
        similar: cosine similarities among the clients' summed updates, ``(n, n)``.
        confidence: kappa, of the logit.
    """
    n = len(similar)
    if n == 1:
        return torch.ones(1, dtype=torch.float64)
    others = similar.clone().fill_diagonal_(-math.inf)
    # As in the authors' code at least 0, or pardoning would turn the signs of who is like nobody.
    most = others.max(dim=1).values.clamp(min=0)
    # Pardoning: who resembles a client that resembles others more is judged the less for it.
    ratio = most[:, None] / torch.where(most == 0, 1.0, most)
    pardoned = torch.where(most[None, :] > most[:, None], others * ratio, others)
    credit = (1 - pardoned.fill_diagonal_(-math.inf).max(dim=1).values).clamp(0, 1)
    if not bool(credit.any()):
        return credit
    # Its logit is infinite at 1, where the authors' code takes 0.99.
    credit = (credit / credit.max()).clamp(max=0.99)
    return (confidence * (torch.log(credit / (1 - credit)) + 0.5)).clamp(0, 1)


def flame_admitted(similar: Tensor) -> Tensor:
    """The largest cluster of directions, of more than half of the rows (Nguyen et al. 2022, section 4.3), int64.

    HDBSCAN on cosine distances; all rows where it finds no such cluster.
    """
    from sklearn.cluster import HDBSCAN

    n = len(similar)
    if n < 3:
        return torch.arange(n)
    apart = (1 - similar).clamp(min=0).fill_diagonal_(0).numpy()
    clusters = HDBSCAN(
        min_cluster_size=n // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    ).fit_predict(apart)
    labels = torch.as_tensor(clusters)
    inside = labels[labels >= 0]
    if not len(inside):
        return torch.arange(n)
    return torch.nonzero(labels == inside.mode().values).squeeze(1)


@dataclass(frozen=True)
class _OnUpdates(CohortRule):
    """A rule that judges clients, whose updates must not be mixed before."""

    def __post_init__(self) -> None:
        require(self.mixing is None, "mixing", type(self.mixing).__name__, "null: this rule judges single clients")


@dataclass(frozen=True)
class FLTrust(_OnUpdates):
    """Trust begins with data of the server's own (Cao et al. 2021).

    The server takes part as a client whose data are clean, and whose update is the root: it isn't averaged itself. It
    has to be in every round.

    Args:
        root: the server's number in the roster; poisoners own the last clients.
    """

    root: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.root >= 0, "root", self.root, "a client's number, from 0")

    def check(self, facts: "Facts") -> None:
        super().check(facts)
        last = facts.clients - 1
        require(self.root <= last, "defense.aggregation.root", self.root, f"a client's number, 0 to {last}")
        for field, value, right in (("participation", facts.participation, 1), ("dropout", facts.dropout, 0)):
            require(value == right, f"federation.{field}", value, f"{right}: FLTrust's root has to be in every round")

    @property
    def least(self) -> int:
        return 2

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        if self.root not in cohort.clients:
            # Without a root there is nobody to trust.
            return Decision(torch.zeros(context.layout.size), torch.zeros(len(cohort.clients), dtype=torch.bool))
        place = cohort.clients.index(self.root)
        rest = torch.tensor([i for i in range(len(cohort.clients)) if i != place], dtype=torch.int64)
        weights = torch.zeros(len(cohort.clients), dtype=torch.float64)
        weights[rest] = fltrust_weights(cohort.matrix[torch.cat([torch.tensor([place]), rest])])
        kept = weights > 0
        kept[place] = True
        return Decision(cohort.combined(weights), kept)


@dataclass(frozen=True)
class FoolsGold(_OnUpdates):
    """Clients that pull the same way round after round lose their say (Fung et al. 2020).

    Similarity is that of the sums of each client's updates so far; the mean is weighted by what is believed of each.

    Args:
        confidence: kappa, of the logit, > 0.
    """

    confidence: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.confidence < math.inf, "confidence", self.confidence, "must be positive")

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        known, sums = state.get("clients", []), state.get("sums", torch.zeros(0, context.layout.size))
        new = [c for c in cohort.clients if c not in known]
        known, sums = [*known, *new], torch.cat([sums, torch.zeros(len(new), context.layout.size)])
        rows = torch.tensor([known.index(c) for c in cohort.clients], dtype=torch.int64)
        sums[rows] += cohort.matrix
        state.update(clients=known, sums=sums)
        believed = foolsgold_weights(cosines(sums[rows])[0], self.confidence)
        total = believed.sum()
        return Decision(cohort.combined(believed / total if total > 0 else believed), believed > 0)


@dataclass(frozen=True)
class FLAME(_OnUpdates):
    """Clustering of directions, clipping to the median norm, and a little noise (Nguyen et al. 2022, algorithm 1).

    Directions are those of updates; the paper's are those of whole local models. Its noise is no guarantee of privacy.

    Args:
        noise: lambda: the noise's standard deviation over the median norm, at least 0.
    """

    noise: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.noise < math.inf, "noise", self.noise, "at least 0")

    def decide(self, cohort: Cohort, state: dict[str, Any], context: RoundContext) -> Decision:
        similar, lengths = cosines(cohort.matrix)
        admitted = flame_admitted(similar)
        bound = lengths.quantile(0.5)
        weights = torch.zeros_like(lengths)
        weights[admitted] = (bound / lengths[admitted].clamp(min=1e-300)).clamp(max=1) / len(admitted)
        vector = cohort.combined(weights)
        if self.noise and bound > 0:
            noise, size = stream(context.seed, "flame", context.round), context.layout.trainable
            # Not on buffers: BatchNorm's running variance would turn negative.
            vector[:size] += gaussian(size, self.noise * float(bound), "seeded", noise)
        kept = torch.zeros(len(lengths), dtype=torch.bool)
        kept[admitted] = True
        return Decision(vector, kept)
