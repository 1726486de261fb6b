"""Whether the intervals hold what they promise: simulated pairs of arms with a known slow-down.

Simulated times have what makes real ones hard: each boot has a level of its own, repeats scatter around it with a tail
to the right, and now and then one takes much longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.ratio import Boots, logs, percentile, ratio


@dataclass(frozen=True)
class Noise:
    """What scatters.

    Args:
        boot: standard deviation of a boot's level, relative.
        repeat: scale of a repeat's exponential tail, relative.
        spikes: share of repeats that take ``spike`` times as long.
        spike: that factor.
    """

    boot: float = 0.02
    repeat: float = 0.03
    spikes: float = 0.03
    spike: float = 2.5

    def __post_init__(self) -> None:
        for name in ("boot", "repeat"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 to below 1")
        require(0 <= self.spikes < 0.5, "spikes", self.spikes, "0 to below 0.5: they are rare")
        require(self.spike >= 1, "spike", self.spike, "at least 1")


@dataclass(frozen=True)
class Coverage:
    """What became of ``pairs`` simulated comparisons with one true ratio.

    ``covered`` is the share of intervals that hold the truth, ``found`` that of intervals that leave 1, ``plain`` the
    share covered by percentile intervals of the same pairs, ``width`` the median half-width.
    """

    truth: float
    boots: int
    pairs: int
    covered: float
    found: float
    plain: float
    width: float


def simulate(boots: int, repeats: int, slow: float, noise: Noise, rng: np.random.Generator) -> Boots:
    """Times of one arm whose true time is ``slow``."""
    level = slow * np.exp(rng.normal(0, noise.boot, boots))
    tail = 1 + rng.exponential(noise.repeat, (boots, repeats))
    times = level[:, None] * tail * np.where(rng.random((boots, repeats)) < noise.spikes, noise.spike, 1)
    return {str(n): row.tolist() for n, row in enumerate(times)}


def coverage(
    truth: float,
    boots: int = 6,
    repeats: int = 10,
    pairs: int = 200,
    noise: Noise | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Coverage:
    """Compare ``pairs`` simulated pairs of arms whose true ratio is ``truth``."""
    noise = noise or Noise()
    rng = np.random.default_rng([seed, boots, round(1000 * truth)])
    covered = found = plain = 0
    widths = []
    for pair in range(pairs):
        base = simulate(boots, repeats, 1.0, noise, rng)
        other = simulate(boots, repeats, truth, noise, rng)
        one = ratio(base, other, level, draws=1000, seed=pair)
        low, high = np.exp(percentile(logs(base), logs(other), level, 1000, np.random.default_rng(pair)))
        covered += one.holds(truth)
        found += one.found
        plain += bool(low <= truth <= high)
        widths.append(one.width if one.width is not None else np.nan)
    return Coverage(truth, boots, pairs, covered / pairs, found / pairs, plain / pairs, float(np.median(widths)))


def draw(found: Sequence[Coverage], level: float, stem: Path) -> list[Path]:
    """Coverage and detection against the number of boots, for each true ratio; writes PDF and PNG."""
    from privbench.benchmarks.results.style import COLOURS, MARKERS, PAGE, new, save, style

    truths = sorted({c.truth for c in found})
    with style():
        figure = new(PAGE, 2.5)
        left, right = figure.subplots(1, 2)
        for i, truth in enumerate(truths):
            look = {"color": COLOURS[i], "marker": MARKERS[i]}
            one = sorted((c for c in found if c.truth == truth), key=lambda c: c.boots)
            boots = [c.boots for c in one]
            left.plot(boots, [100 * c.covered for c in one], label=f"studentised, true ratio {truth:g}", **look)
            right.plot(boots, [100 * c.found for c in one], label=f"true ratio {truth:g}", **look)
        counts = sorted({c.boots for c in found})
        means = [100 * np.mean([c.plain for c in found if c.boots == n]) for n in counts]
        left.plot(counts, means, color="#7F7F7F", linestyle=":", label="percentile, mean of all")
        left.axhline(100 * level, color="black", linewidth=0.8, linestyle="--")
        right.axhline(100 * (1 - level), color="black", linewidth=0.8, linestyle="--")
        left.set(xlabel="boots of each arm", ylabel="intervals that hold the truth, %", ylim=(50, 101))
        right.set(xlabel="boots of each arm", ylabel="intervals that leave 1, %", ylim=(-2, 102))
        left.legend(loc="lower right", fontsize=6)
        right.legend(loc="center right", bbox_to_anchor=(1, 0.4))
        figure.suptitle(f"{found[0].pairs} simulated pairs each, {100 * level:g}% intervals; dashed: what they promise")
        return save(figure, stem)


def main() -> None:
    """``python -m privbench.benchmarks.overhead.calibration``: the figure, and its numbers on the terminal."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("calibration"), metavar="STEM")
    parser.add_argument("--pairs", type=int, default=200, metavar="N")
    options = parser.parse_args()
    require(options.pairs >= 1, "pairs", options.pairs, "at least 1")
    found = [coverage(t, n, pairs=options.pairs) for n in (3, 4, 6, 8, 12, 20) for t in (1.0, 1.05, 1.2, 2.0)]
    for c in found:
        print(
            f"{c.boots:>3} boots, true {c.truth:<5g} held by {c.covered:6.1%} (percentile {c.plain:6.1%}), "
            f"leave 1: {c.found:6.1%}, half-width {c.width:.1%}"
        )
    for path in draw(found, 0.95, options.out):
        print(path)


if __name__ == "__main__":
    main()
