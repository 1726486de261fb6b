"""Leakage: attack what an adversary sees, and compare with the truth that only the measure holds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from privbench.attacks.leakage.attack import Attack, AttackFailed, Reconstruction, Several
from privbench.attacks.leakage.attack import check as usable
from privbench.attacks.leakage.capabilities import CAPABILITIES, never
from privbench.attacks.leakage.disaggregation import disaggregate
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.observe import Observation, observe
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import ADVERSARIES, Public, View, joined, parted
from privbench.benchmarks.measures.case import Case
from privbench.benchmarks.measures.comparison import (
    THRESHOLDS,
    Arrays,
    Records,
    check,
    compare,
    is_image,
    label_accuracy,
)
from privbench.benchmarks.measures.guesses import controls
from privbench.benchmarks.measures.images import CAP_DB
from privbench.benchmarks.measures.rows import Metric, missing, rows

__all__ = ["Case", "Leakage", "compare", "gradient_error", "is_image", "label_accuracy"]

STRANGERS = 256
"""At least so many other clients' records stand in for reconstructions that know nothing."""
OPERATORS = ("server_operator", "active_operator")


@dataclass
class _Work:
    """A case on its way: what is attacked, and the rows and arrays that hold whatever comes of it."""

    case: Case
    context: Metric
    guessed: dict[str, float]
    pictures: Arrays
    observation: Observation | None = None
    rows: list[Metric] | None = None


@dataclass(frozen=True)
class Leakage:
    """Which attack is made, by whom, on whom and when.

    Args:
        attack: gets the view and what is derived from it, never the truth.
        rounds: attacked rounds, from 1.
        victims: the first so many clients, or the listed ones.
        adversaries: whose views are attacked; ``server_operator+2``: with the last two clients beside the victim.
        images: how many records a victim's arrays keep at most; ``None``: all. Metrics are over the whole batch.
        max_batch: observations of more records are not attacked, status ``skipped``; ``None``: no limit.
        over_rounds: where the client's update isn't visible by itself, disaggregate it from the released models of all
            rounds so far, or of the last so many. It needs an adversary that sees who took part.
        most: at most so many victims are attacked in a round, the first of those that took part; ``None``: all.
        thresholds: PSNR in dB from which an image counts as reconstructed, ascending; see :data:`.THRESHOLDS`.
    """

    attack: Attack
    rounds: tuple[int, ...] = (1,)
    victims: int | tuple[int, ...] = 3
    adversaries: tuple[str, ...] = ("server_operator",)
    images: int | None = None
    max_batch: int | None = None
    over_rounds: bool | int = False
    most: int | None = None
    thresholds: tuple[float, ...] = THRESHOLDS

    def __post_init__(self) -> None:
        ascending = self.rounds == tuple(sorted(set(self.rounds)))
        require(
            bool(self.rounds) and ascending and self.rounds[0] >= 1, "rounds", self.rounds, "rounds from 1, ascending"
        )
        if isinstance(self.victims, int):
            require(self.victims >= 1, "victims", self.victims, "at least 1, or a list of clients")
        else:
            sound = len(set(self.victims)) == len(self.victims) > 0 and min(self.victims) >= 0
            require(sound, "victims", self.victims, "different clients, counted from 0")
        unknown = sorted(self.attack.needs - CAPABILITIES.keys())
        require(not unknown, "attack", unknown, f"an attack that needs no more than {', '.join(CAPABILITIES)}")
        require(bool(self.adversaries), "adversaries", self.adversaries, f"one or more of {', '.join(ADVERSARIES)}")
        for adversary in self.adversaries:
            known = parted(adversary)
            require(known is not None, "adversaries", adversary, f"one of {', '.join(ADVERSARIES)}")
            # Whoever doesn't see who took part doesn't know what to subtract a colluder's update from.
            sound = known is None or not known[1] or known[0] in OPERATORS
            require(sound, "adversaries", adversary, f"clients that collude with {' or '.join(OPERATORS)} alone")
            lacking = never(self.attack.needs, adversary)
            why = "" if lacking is None else f"{lacking} ({CAPABILITIES[lacking]})"
            attack = type(self.attack).__name__
            require(lacking is None, "adversaries", adversary, f"an adversary that can have what {attack} needs: {why}")
        require(self.most is None or self.most >= 1, "most", self.most, "null, or at least 1")
        several = isinstance(self.over_rounds, bool) or self.over_rounds >= 2
        require(several, "over_rounds", self.over_rounds, "true, false, or at least 2 rounds")
        require(self.images is None or self.images >= 1, "images", self.images, "null, or at least 1")
        require(self.max_batch is None or self.max_batch >= 1, "max_batch", self.max_batch, "null, or at least 1")
        between = all(0 < t < CAP_DB for t in self.thresholds) and self.thresholds == tuple(sorted({*self.thresholds}))
        require(between, "thresholds", self.thresholds, f"dB between 0 and {CAP_DB:g}, ascending")

    def clients(self, total: int) -> tuple[int, ...]:
        """The victims among ``total`` clients.

        Raises:
            ConfigError: if a listed client doesn't exist.
        """
        if isinstance(self.victims, int):
            return tuple(range(min(self.victims, total)))
        require(max(self.victims) < total, "victims", self.victims, f"clients from 0 to {total - 1}")
        return self.victims

    @property
    def coalitions(self) -> tuple[tuple[str, str, int], ...]:
        """By adversary: its name in records, whose view it has, and how many clients collude with it."""
        found = [(a, parted(a)) for a in self.adversaries]
        return tuple((joined(p[0], p[1]), p[0], p[1]) for _, p in found if p is not None)

    def window(self, round: int) -> range:
        """The rounds that an attack in ``round`` looks at."""
        if isinstance(self.over_rounds, bool):
            return range(1 if self.over_rounds else round, round + 1)
        return range(max(1, round - self.over_rounds + 1), round + 1)

    def measure(self, case: Case) -> tuple[list[Metric], Arrays]:
        """Attack one case and say how much was found.

        Returns:
            Metrics, one a dictionary: ``metric``, ``round``, ``client``, ``adversary``, ``value``; with an observation
            also ``source``, ``exact``, ``batch_size`` and ``labels`` (``known`` is side information). Where there is
            no value, ``value`` is ``None`` and ``status`` ``not_applicable`` (nothing to attack), ``failed`` or
            ``skipped``, with a ``reason``.

            For images: ``psnr_db`` (mean over the batch after one-to-one matching), its median, worst and best image,
            ``psnr_exact`` (how many are capped at 100 dB), ``psnr_db_oracle`` (the best restart by the truth: no
            attacker has it), ``success_rate_20db`` and so on (share of the batch at a threshold or above), ``ssim``,
            ``lpips`` (only where :func:`.perceptual.lpips` has its weights), ``mse`` (raw). For signals and tables
            PSNR, SSIM and LPIPS are not defined: ``mse`` only, in units of the squared standard deviation, with
            ``mse_median``, ``mse_worst``, ``mse_best``, ``mse_oracle``.

            For all: ``identification_rank``, ``identified`` (:func:`.identification.identification`) and ``*_chance``
            (:func:`.identification.chance`); ``psnr_db_same_label``, ``ssim_same_label``, ``mse_same_label``, the
            reconstructions matched to other clients' records of the same labels, which is the score that is owed to
            the class; ``psnr_db_*``, ``ssim_*`` or ``mse_*`` of the trivial guesses (:func:`.guesses.guesses`), which
            hold whether or not the attack did; ``label_accuracy`` compares the two multisets of labels, and
            ``label_accuracy_majority`` is that of guessing the commonest class; ``gradient_error`` is the relative
            distance of the gradient at the true records from the observed one: about 0 for an exact undefended
            observation, otherwise what noise, clipping, local steps and other clients make of it, or a fault in the
            set-up; ``gradient_objective`` is the attack's own final value, and ``attack_seconds`` its time. Each row
            has ``records``, the number of true ones.

            Arrays: ``originals`` and ``reconstructions`` (raw in [0, 1] for images), ``mse`` and ``psnr_db`` (images)
            of each, ``labels``, ``labels_found``, and the guesses ``guess_*``; empty without a reconstruction.
        """
        return self.measure_several([case])[0]

    def measure_several(self, cases: Sequence[Case]) -> list[tuple[list[Metric], Arrays]]:
        """As :meth:`measure` for each; an attack that can takes them on side by side, and each counts an equal share
        of ``attack_seconds``."""
        works = [self._prepare(case) for case in cases]
        open_ = [w for w in works if w.rows is None and w.observation is not None]
        started = time.perf_counter()
        found = self._reconstruct(open_)
        seconds = (time.perf_counter() - started) / max(1, len(open_))
        arrays: dict[int, Arrays] = {}
        for work, one in zip(open_, found, strict=True):
            arrays[id(work)] = self._finish(work, one, seconds)
        return [(w.rows or [], arrays.get(id(w), {})) for w in works]

    def _reconstruct(self, works: Sequence[_Work]) -> list[Reconstruction | AttackFailed]:
        found: list[Reconstruction | AttackFailed] = []
        if isinstance(self.attack, Several) and works:
            seen = [w.observation for w in works if w.observation is not None]
            try:
                return self.attack.reconstruct_many(works[0].case.view, seen, [w.case.generator for w in works])
            except Exception as error:
                return [_broken(error)] * len(works)
        for work in works:
            assert work.observation is not None
            try:
                found.append(self.attack.reconstruct(work.case.view, work.observation, work.case.generator))
            except AttackFailed as failure:
                found.append(failure)
            except Exception as error:
                found.append(_broken(error))
        return found

    def _prepare(self, case: Case) -> _Work:
        """What there is to attack; where there is nothing, the rows that say so."""
        public, truth = case.view.public, case.truth
        who = {"round": case.round, "client": case.client, "adversary": case.view.adversary, "records": len(truth.y)}
        observation, reason = self._observe(case.view, case.round, case.client)
        context = who
        if observation is not None:
            observation, context = self._declare(observation, truth, who)
        # A guess has as many tries as the attack.
        count = len(truth.y) if observation is None else max(len(truth.y), observation.records)
        guessed = controls(public, truth, case.distractors, case.peers, count, case.further(count))
        work = _Work(case, context, *guessed, observation)
        if work.observation is None:
            return self._without(work, "not_applicable", reason)
        if self.max_batch is not None and work.observation.records > self.max_batch:
            reason = f"{work.observation.records} records, more than max_batch={self.max_batch}"
            return self._without(work, "skipped", reason)
        try:
            usable(case.view, work.observation, self.attack.needs)
        except AttackFailed as failure:
            return self._without(work, "failed", failure.reason)
        return work

    def _without(self, work: _Work, status: str, reason: str) -> _Work:
        public = work.case.view.public
        work.rows = missing(public, work.context, status, reason) + rows(work.context, work.guessed)
        return work

    def _finish(self, work: _Work, found: Reconstruction | AttackFailed, seconds: float) -> Arrays:
        case, public, observation = work.case, work.case.view.public, work.observation
        assert observation is not None
        try:
            if isinstance(found, AttackFailed):
                raise found
            check(public, found)
        except AttackFailed as failure:
            self._without(work, "failed", failure.reason)
            return {}
        further = case.further(max(STRANGERS, 2 * len(found.x)))
        values, arrays = compare(public, found, case.truth, case.distractors, case.peers, self.thresholds, further)
        values |= {
            "gradient_error": gradient_error(public, observation, case.truth),
            "gradient_objective": found.objective,
        }
        took = {"metric": "attack_seconds", **work.context, "value": seconds, "engine": found.engine}
        work.rows = [*rows(work.context, {**values, **work.guessed}), took]
        return {name: array[: self.images] for name, array in {**arrays, **work.pictures}.items()}

    def _observe(self, view: View, round: int, client: int) -> tuple[Observation | None, str]:
        """What there is to attack, or why there is nothing."""
        found = observe(view, round, client)
        window = self.window(round)
        if len(window) == 1 or (found is not None and (found.source == "update" or found.exact)):
            return found, f"{view.adversary} sees nothing of client {client} in round {round}"
        found = disaggregate(view, client, window)
        rounds = f"rounds {window[0]} to {window[-1]}"
        return found, f"the releases of {rounds} don't tell {view.adversary} client {client} from the others"

    def _declare(self, observation: Observation, truth: Records, context: Metric) -> tuple[Observation, Metric]:
        """Fill in the side information that the attack needs, and say so."""
        needs = self.attack.needs
        batch = "known" if not observation.counted and "batch_size" in needs else "claimed"
        if batch == "known":
            observation = replace(observation, records=len(truth.y), counted=True)
        if "labels" in needs:
            # Labels tell how many they are. Of a mixture of clients the victim's alone are told, so that its records
            # alone are sought; of a client that draws its batches, those that it drew.
            batch = "known" if observation.records != len(truth.y) else batch
            observation = replace(observation, labels=truth.y, records=len(truth.y))
        declared = {
            "source": observation.source,
            "exact": observation.exact,
            "batch_size": batch,
            "labels": "known" if "labels" in needs else "from_gradient",
        }
        return observation, {**context, **declared}


def _broken(error: Exception) -> AttackFailed:
    """An attack's mistake is its failure, by name: the run that it measures goes on."""
    return AttackFailed(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def gradient_error(public: Public, observation: Observation, truth: Records) -> float:
    """``|g(truth) - observed| / |observed|``, 0 at best."""
    expected = ClientGradient(public, observation.model)(truth.x, truth.y).detach()
    return float((expected - observation.gradient).norm() / observation.gradient.norm())
