"""Robust aggregation rules beside ByzFL's, on the same random updates.

    python -m privbench.benchmarks.speed.aggregation [--cohorts 20 100] [--sizes 1000000] [--rules median krum]

One thread; f is a fifth of the cohort. Times are CPU seconds, the least of a few repeats that take turns; memory is by
how much a call makes a process of its own grow, over the size of the updates. Results are compared before they are
timed: ByzFL's neighbours and iterations are taken, where the literature's differ. The geometric median is iterated to
convergence here and three times there, as is their default, so that no two results can be compared.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from privbench.benchmarks.speed.memory import grown
from privbench.defenses.aggregation import geometry
from privbench.defenses.aggregation.coordinates import median, trimmed_mean
from privbench.defenses.aggregation.geometric_median import centered_clipping, geometric_median
from privbench.defenses.aggregation.krum import krum, multi_krum
from privbench.defenses.aggregation.mixing import nearest_neighbours

Call = Callable[[Tensor, int], Tensor]
RADIUS = 100.0


@dataclass(frozen=True)
class Contest:
    """One rule in both libraries: functions of ``(n, d)`` updates and f.

    Args:
        ours, theirs: the calls; ``theirs`` gets ByzFL as its first argument.
        same: whether their results are to agree.
    """

    ours: Call
    theirs: Callable[[Any, Tensor, int], Tensor]
    same: bool = True


def _mixed_multi_krum(x: Tensor, f: int) -> Tensor:
    """Multi-Krum of nearest-neighbour mixtures, all of it in n by n matrices until the last product."""
    squared = geometry.squared_distances(x)
    mixing = nearest_neighbours(squared, f)
    n = len(x)
    scores = geometry.mixed_distances(squared, mixing).sort(dim=1).values[:, 1 : n - f].sum(dim=1)
    chosen = scores.argsort(stable=True)[: n - f]
    return geometry.weighted(mixing[chosen].mean(dim=0), x)


CONTESTS = {
    "median": Contest(lambda x, f: median(x), lambda b, x, f: b.Median()(x)),
    "trimmed_mean": Contest(trimmed_mean, lambda b, x, f: b.TrMean(f)(x)),
    "krum": Contest(lambda x, f: krum(x, f, len(x) - f - 1), lambda b, x, f: b.Krum(f)(x)),
    "multi_krum": Contest(lambda x, f: multi_krum(x, f, neighbours=len(x) - f - 1), lambda b, x, f: b.MultiKrum(f)(x)),
    "geometric_median": Contest(lambda x, f: geometric_median(x), lambda b, x, f: b.GeometricMedian()(x), same=False),
    "centered_clipping": Contest(
        lambda x, f: centered_clipping(x, torch.zeros(x.shape[1]), RADIUS),
        lambda b, x, f: b.CenteredClipping(tau=RADIUS)(x),
    ),
    "nnm_multi_krum": Contest(_mixed_multi_krum, lambda b, x, f: b.MultiKrum(f)(b.NNM(f)(x))),
}


def updates(n: int, d: int) -> Tensor:
    """Random updates, ``(n, d)`` float32. No two are equally far from a third, so that rules have one answer."""
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=drawn) * (1 + torch.arange(n)[:, None] / n) + 0.5


def seconds(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """The least CPU seconds of each, taking turns, after a turn that doesn't count."""
    best = [float("inf")] * len(calls)
    for turn in range(repeats + 1):
        for place, call in enumerate(calls):
            start = time.process_time()
            call()
            if turn:
                best[place] = min(best[place], time.process_time() - start)
    return best


def check(name: str, n: int, d: int) -> None:
    """Raises:
    AssertionError: if the two libraries' results differ by more than 1e-5 of the largest entry.
    """
    import byzfl

    contest, x, f = CONTESTS[name], updates(n, d), n // 5
    mine = contest.ours(x, f)
    if name == "median" and n % 2 == 0:
        # Theirs is the lower of the middle two.
        mine, x = median(x[1:]), x[1:]
    if contest.same:
        theirs = contest.theirs(byzfl, x.clone(), f)
        off = float((mine - theirs).abs().max() / theirs.abs().max())
        assert off <= 1e-5, f"{name}: results differ by {off:.1e} of the largest entry"


def added(name: str, n: int, d: int, ours: bool) -> float:
    """Peak memory that a call adds, over the size of the updates, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_peak, args=(there, name, n, d, ours))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def _peak(pipe: Any, name: str, n: int, d: int, ours: bool) -> None:
    torch.set_num_threads(1)
    contest, f = CONTESTS[name], n // 5

    def call(x: Tensor) -> Tensor:
        if ours:
            return contest.ours(x, f)
        import byzfl

        return contest.theirs(byzfl, x, f)

    call(updates(n, 100))  # what a first call loads
    x = updates(n, d)
    pipe.send(grown(lambda: call(x)) * 1024 / x.nbytes)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m privbench.benchmarks.speed.aggregation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cohorts", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rules", nargs="+", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("byzfl") is None:
        sys.exit("byzfl is not installed: pip install byzfl")
    import byzfl

    torch.set_num_threads(1)
    threadpool_limits(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread, CPU seconds\n")
    print(f"{'rule':<20}{'n':>5}{'d':>10}{'privbench':>11}{'ByzFL':>10}{'ratio':>8}{'memory/input':>15}{'ByzFL':>8}")
    for n in given.cohorts:
        for d in given.sizes:
            x, f = updates(n, d), n // 5
            for name in given.rules:
                check(name, n, min(d, 10_000))
                contest = CONTESTS[name]
                calls = [partial(contest.ours, x, f), partial(contest.theirs, byzfl, x, f)]
                ours, theirs = seconds(calls, given.repeats)
                row = f"{name:<20}{n:>5}{d:>10}{ours:>11.4f}{theirs:>10.4f}{theirs / ours:>7.1f}x"
                if not given.no_memory:
                    row += f"{added(name, n, d, True):>15.2f}{added(name, n, d, False):>8.2f}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
