"""Leakage: attack what an adversary sees, and compare with the truth that only the measure holds."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from privbench.attacks.leakage.attack import Attack, AttackFailed, Reconstruction, check
from privbench.attacks.leakage.capabilities import CAPABILITIES, never
from privbench.attacks.leakage.disaggregation import disaggregate
from privbench.attacks.leakage.gradient import ClientGradient
from privbench.attacks.leakage.observe import Observation, observe
from privbench.benchmarks.build import require
from privbench.benchmarks.federation.view import ADVERSARIES, Public, View, joined, parted
from privbench.benchmarks.measures import images

OPERATORS = ("server_operator", "active_operator")
Metric = dict[str, Any]
Arrays = dict[str, np.ndarray]


class Records(Protocol):
    """The truth: a :class:`~privbench.benchmarks.tasks.task.Split`."""

    @property
    def x(self) -> Tensor: ...

    @property
    def y(self) -> Tensor: ...


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
    """

    attack: Attack
    rounds: tuple[int, ...] = (1,)
    victims: int | tuple[int, ...] = 3
    adversaries: tuple[str, ...] = ("server_operator",)
    images: int | None = None
    max_batch: int | None = None
    over_rounds: bool | int = False
    most: int | None = None

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

    def measure(
        self,
        view: View,
        round: int,
        client: int,
        truth: Records,
        generator: torch.Generator,
        distractors: Tensor | None = None,
    ) -> tuple[list[Metric], Arrays]:
        """Attack ``client``'s records of ``round`` and say how much was found.

        Args:
            view: of one adversary.
            truth: the records behind the client's update, standardised. Only declared side information of it reaches
                the attack: labels where the attack needs them, the number of records where the view shows none.
            generator: a CPU generator.
            distractors: other records ``(m, *shape)``, standardised, for the baseline ``other_image``.

        Returns:
            Metrics, one a dictionary: ``metric``, ``round``, ``client``, ``adversary``, ``value``; with an observation
            also ``source``, ``exact``, ``batch_size`` and ``labels`` (``known`` is side information). Where there is
            no value, ``value`` is ``None`` and ``status`` ``not_applicable`` (nothing to attack), ``failed`` or
            ``skipped``, with a ``reason``.

            For images: ``psnr_db`` (mean over the batch after one-to-one matching), its median, worst and best image,
            ``psnr_exact`` (how many are capped at 100 dB), ``psnr_db_oracle`` (the best restart by the truth: no
            attacker has it), ``ssim``, ``mse`` (raw), and ``psnr_db_*``, ``ssim_*`` of the trivial baselines, which
            hold whether or not the attack did. For signals and tables PSNR and SSIM are not defined: ``mse`` only, in
            units of the standard deviation, and ``mse_mean`` for the guess of the training mean. For all:
            ``label_accuracy`` compares the two multisets of labels; ``gradient_error`` is the relative distance of
            the gradient at the true records from the observed one: about 0 for an exact undefended observation,
            otherwise what noise, clipping, local steps and other clients make of it, or a fault in the set-up;
            ``gradient_objective`` is the attack's own final value, and ``attack_seconds`` its time.

            Arrays: ``originals`` and ``reconstructions`` (raw in [0, 1] for images), ``psnr_db`` of each, ``labels``
            and ``labels_found``; empty without a reconstruction.
        """
        context: Metric = {"round": round, "client": client, "adversary": view.adversary}
        observation, reason = self._observe(view, round, client)
        count = len(truth.y) if observation is None else max(len(truth.y), observation.records)
        controls = _controls(view.public, truth, distractors, count)
        if observation is None:
            return _missing(view.public, context, "not_applicable", reason) + _rows(context, controls), {}
        observation, context = self._declare(observation, truth, context)
        if self.max_batch is not None and observation.records > self.max_batch:
            reason = f"{observation.records} records, more than max_batch={self.max_batch}"
            return _missing(view.public, context, "skipped", reason) + _rows(context, controls), {}
        started = time.perf_counter()
        try:
            check(view, observation, self.attack.needs)
            found = self.attack.reconstruct(view, observation, generator)
        except AttackFailed as failure:
            return _missing(view.public, context, "failed", failure.reason) + _rows(context, controls), {}
        seconds = time.perf_counter() - started
        values, arrays = compare(view.public, found, truth)
        values |= {
            "gradient_error": gradient_error(view.public, observation, truth),
            "gradient_objective": found.objective,
            "attack_seconds": seconds,
        }
        kept = {name: array[: self.images] for name, array in arrays.items()}
        return _rows(context, {**values, **controls}), kept

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
            # Of a mixture of clients the victim's labels alone are told, so that its records alone are sought.
            count = len(truth.y) if observation.source == "release" else observation.records
            observation = replace(observation, labels=truth.y, records=count)
        declared = {
            "source": observation.source,
            "exact": observation.exact,
            "batch_size": batch,
            "labels": "known" if "labels" in needs else "from_gradient",
        }
        return observation, {**context, **declared}


def is_image(public: Public) -> bool:
    """Whether inputs are images ``(C, H, W)``, whose raw range is [0, 1]."""
    return len(public.shape) == 3


def compare(public: Public, found: Reconstruction, truth: Records) -> tuple[dict[str, float], Arrays]:
    """Values of a reconstruction against the truth, and the arrays behind them; see :meth:`Leakage.measure`.

    True records that no reconstruction was left for are compared with grey (images) or the training mean (others).
    """
    labels = {"label_accuracy": label_accuracy(found.y, truth.y)}
    i, j = images.match(found.x, truth.x)
    guessed = torch.full_like(truth.y, -1)
    guessed[j] = found.y[i].to(guessed)
    arrays = {"labels": truth.y.numpy(), "labels_found": guessed.numpy()}
    if not is_image(public):
        x = images.aligned(found.x, truth.x, 0.0)
        arrays |= {"originals": truth.x.numpy(), "reconstructions": x.numpy()}
        return {"mse": float(images.mse(x, truth.x).mean()), **labels}, arrays
    original = images.to_raw(truth.x, public.mean, public.std)
    x = images.aligned(images.to_raw(found.x, public.mean, public.std), original, 0.5)
    psnr = images.psnr(x, original)
    restarts = [images.aligned(images.to_raw(c, public.mean, public.std), original, 0.5) for c in found.candidates]
    values = {
        "psnr_db": float(psnr.mean()),
        "psnr_db_median": float(psnr.median()),
        "psnr_db_worst": float(psnr.min()),
        "psnr_db_best": float(psnr.max()),
        "psnr_db_oracle": max(float(images.psnr(r, original).mean()) for r in restarts),
        "psnr_exact": int((psnr >= images.CAP_DB).sum()),
        "ssim": float(images.ssim(x, original).mean()),
        "mse": float(images.mse(x, original).mean()),
    }
    arrays |= {"originals": original.numpy(), "reconstructions": x.numpy(), "psnr_db": psnr.numpy()}
    return {**values, **labels}, arrays


def label_accuracy(found: Tensor, truth: Tensor) -> float:
    """Share of the true labels ``(n,)`` that are among those found ``(m,)``, each used once."""
    return sum(min(int((found == c).sum()), int((truth == c).sum())) for c in truth.unique()) / len(truth)


def gradient_error(public: Public, observation: Observation, truth: Records) -> float:
    """``|g(truth) - observed| / |observed|``, 0 at best."""
    expected = ClientGradient(public, observation.model)(truth.x, truth.y).detach()
    return float((expected - observation.gradient).norm() / observation.gradient.norm())


def _controls(public: Public, truth: Records, distractors: Tensor | None, count: int) -> dict[str, float]:
    """The guesses' values. Where ``count`` reconstructions are matched to the truth, so are that many other images."""
    if not is_image(public):
        return {"mse_mean": float(images.mse(torch.zeros_like(truth.x), truth.x).mean())}
    original = images.to_raw(truth.x, public.mean, public.std)
    others = None if distractors is None else images.to_raw(distractors[:count], public.mean, public.std)
    values: dict[str, float] = {}
    for name, x in images.baselines(original, others).items():
        values[f"psnr_db_{name}"] = float(images.psnr(x, original).mean())
        values[f"ssim_{name}"] = float(images.ssim(x, original).mean())
    return values


def _missing(public: Public, context: Metric, status: str, reason: str) -> list[Metric]:
    names = ("psnr_db", "ssim", "mse") if is_image(public) else ("mse",)
    return [{"metric": name, **context, "value": None, "status": status, "reason": reason} for name in names]


def _rows(context: Metric, values: Mapping[str, float]) -> list[Metric]:
    return [{"metric": name, **context, "value": value} for name, value in values.items()]
