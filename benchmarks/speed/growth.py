"""How a round's cost grows with the number of clients and of parameters, by what protects it.

    python -m privbench.benchmarks.speed.growth [--clients 10 30 100] [--sizes 10000 100000] [--out DIR]

Updates are made beforehand: what is timed is the channel and the rule, with the pickling of what leaves a client, in
CPU seconds of all processes, the median of a few rounds. A mean is compared with the true one before its time is
believed. What doesn't fit into memory, or would take longer than ``--seconds`` by the growth so far, is left out by
name. The exponent b of cost ~ x^b is fitted to the three largest points. ``--out`` gets growth.txt, .csv, .png, .pdf.
"""

import argparse
import csv
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path

import numpy as np
import torch

from privbench.benchmarks.speed.growth_figure import draw
from privbench.benchmarks.speed.secagg import Cost, Work, ours
from privbench.defenses.aggregation import ClippedMean, CoordinateMedian, GeometricMedian, Mean, MultiKrum
from privbench.defenses.aggregation.rule import Rule
from privbench.defenses.channel import Attested, Channel, Plaintext, SecAgg

AXES = ("clients", "parameters")
PLACES = ("client", "server")
FITTED = 3
"""Points that an exponent is fitted to."""
FLOOR = 1e-4
"""CPU seconds below which a point says more of the clock than of the cost."""


@dataclass(frozen=True)
class Arm:
    """What protects the round.

    Args:
        channel, rule: made anew for each round.
        copies: of the cohort's updates that are in memory at once, at most.
        exact: whether the outcome is the mean.
    """

    channel: Callable[[], Channel]
    rule: Callable[[int], Rule]
    copies: float
    exact: bool = False


ARMS = {
    "none": Arm(Plaintext, lambda n: Mean(), 3, True),
    # Sums of thousands of clients, weighted by their records, don't fit the usual ring of 32 bits.
    "secagg": Arm(lambda: SecAgg(ring=64), lambda n: Mean(), 7, True),
    "tee": Arm(Attested, lambda n: Mean(), 5, True),
    "norm_clipping": Arm(Plaintext, lambda n: ClippedMean(clip=1.0), 3),
    "median": Arm(Plaintext, lambda n: CoordinateMedian(), 6),
    "multi_krum": Arm(Plaintext, lambda n: MultiKrum(f=n // 5), 6),
    "geometric_median": Arm(Plaintext, lambda n: GeometricMedian(), 6),
}


@dataclass
class Line:
    """One arm along one axis.

    Args:
        arm, axis: by name.
        cohort: how many clients a round has where parameters grow.
        points: CPU seconds of one client and of the server, by x, ascending.
        skipped: why a point is missing, by x.
    """

    arm: str
    axis: str
    cohort: int
    points: dict[int, tuple[float, float]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    def told(self, place: str) -> bool:
        """Whether there is anything to say: a client doesn't know the rule, so that only channels differ to it."""
        return place == "server" or self.arm == "none" or ARMS[self.arm].channel is not Plaintext

    def exponent(self, place: str) -> float | None:
        """Of growth, from the largest points; ``None`` where fewer than :data:`FITTED` can be told from zero."""
        index = PLACES.index(place)
        kept = [(x, p[index]) for x, p in sorted(self.points.items()) if p[index] >= FLOOR][-FITTED:]
        if len(kept) < FITTED:
            return None
        slope, _ = np.polyfit([log(x) for x, _ in kept], [log(y) for _, y in kept], 1)
        return float(slope)

    def expected(self, x: int) -> float:
        """CPU seconds of a whole round at ``x``, by the last two points; 0 before there are any."""
        whole = {
            at: p[0] * (at if self.axis == "clients" else self.cohort) + p[1] for at, p in sorted(self.points.items())
        }
        if len(whole) < 2:
            return 0.0
        (first, low), (last, high) = [*whole.items()][-2:]
        slope = log(max(high, FLOOR) / max(low, FLOOR)) / log(last / first)
        return high * (x / last) ** max(1.0, slope)


def available() -> int:
    """Bytes of memory that programs may still take (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))


def forbids(arm: Arm, clients: int, size: int) -> str | None:
    """Why memory has no room for this point, if it hasn't."""
    needed, there = int(4 * clients * size * arm.copies), int(0.7 * available())
    return None if needed <= there else f"memory: about {needed / 2**30:.1f} GiB, {there / 2**30:.1f} GiB to be had"


def measure(name: str, work: Work, repeats: int) -> tuple[float, float]:
    """CPU seconds of one client and of the server, medians.

    Raises:
        SystemExit: if the outcome is wrong.
    """
    arm = ARMS[name]
    costs: list[Cost] = []
    for _ in range(repeats):
        cost = ours(arm.channel(), work, arm.rule(work.clients), cpu=True)
        if not bool(torch.isfinite(cost.mean).all()) or (arm.exact and not work.close(cost.mean)):
            sys.exit(
                f"{name} gives another mean at {work.clients} clients, {work.size} parameters: no time is believed"
            )
        costs.append(cost)
    return statistics.median(c.client for c in costs), statistics.median(c.server for c in costs)


def grow(names: Sequence[str], axis: str, along: Sequence[int], other: int, repeats: int, most: float) -> list[Line]:
    """All arms along one axis, in turns at each point.

    Args:
        along: values of the axis.
        other: the value of the other one.
        most: CPU seconds of a round beyond which a point isn't tried.
    """
    lines = [Line(name, axis, other) for name in names]
    for name in names:
        measure(name, Work(5, 100), 1)  # what a first call loads
    for x in sorted(along):
        clients, size = (x, other) if axis == "clients" else (other, x)
        least = min(ARMS[line.arm].copies for line in lines)
        work = None if 4 * clients * size * least > 0.7 * available() else Work(clients, size)
        for line in lines:
            if reason := forbids(ARMS[line.arm], clients, size) if work else "memory: not even the updates fit":
                line.skipped[x] = reason
            elif (seconds := line.expected(x)) > most:
                line.skipped[x] = f"time: about {seconds:.0f} CPU seconds a round, {most:.0f} at most"
            else:
                assert work is not None
                line.points[x] = measure(line.arm, work, repeats)
                print(f"{axis} {x}: {line.arm} {line.points[x]}", file=sys.stderr, flush=True)
    return lines


def text(lines: Sequence[Line]) -> str:
    """A table for each axis and place, with exponents, and what was left out."""
    parts = []
    for axis in AXES:
        mine = [line for line in lines if line.axis == axis]
        along = sorted({x for line in mine for x in (*line.points, *line.skipped)})
        for place in PLACES if mine else ():
            who = "one client" if place == "client" else "the server"
            parts.append(f"CPU seconds of {who}, by {axis}\n")
            parts.append(f"| | {' | '.join(f'{x:,}' for x in along)} | exponent |\n|{'---|' * (len(along) + 2)}")
            for line in (x for x in mine if x.told(place)):
                values = (line.points[x][PLACES.index(place)] if x in line.points else None for x in along)
                cells = ("skipped" if v is None else f"{v:.3g}" for v in values)
                slope = line.exponent(place)
                parts.append(f"| {line.arm} | {' | '.join(cells)} | {'—' if slope is None else f'{slope:.2f}'} |")
            parts.append("")
    parts += [
        f"skipped: {line.arm} at {x:,} {line.axis}: {why}" for line in lines for x, why in sorted(line.skipped.items())
    ]
    return "\n".join(parts) + "\n"


def save(lines: Sequence[Line], folder: Path, said: str) -> list[Path]:
    """The table, its numbers and the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "growth.txt", folder / "growth.csv"]
    written[0].write_text(said, encoding="utf-8")
    with open(written[1], "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "axis", "x", "client_cpu_seconds", "server_cpu_seconds", "skipped"])
        for line in lines:
            for x in sorted({*line.points, *line.skipped}):
                writer.writerow([line.arm, line.axis, x, *line.points.get(x, ("", "")), line.skipped.get(x, "")])
    return [*written, *draw(lines, folder / "growth")]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m privbench.benchmarks.speed.growth", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 30, 100, 300, 1000, 3000, 10_000])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10**4, 10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--cohort", type=int, default=10, help="clients where parameters grow")
    parser.add_argument("--size", type=int, default=10_000, help="parameters where clients grow")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of a round that is still tried")
    parser.add_argument("--out", type=Path, help="folder for growth.txt, .csv, .png and .pdf")
    given = parser.parse_args(arguments)
    if min([*given.clients, given.cohort]) < 5 or given.repeats < 1 or min([*given.sizes, given.size]) < 1:
        parser.error("at least 5 clients, so that every rule can be applied, 1 parameter and 1 repeat")
    torch.set_num_threads(1)
    lines = grow(given.arms, "clients", given.clients, given.size, given.repeats, given.seconds)
    lines += grow(given.arms, "parameters", given.sizes, given.cohort, given.repeats, given.seconds)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    said = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread; load at the end {load}\n"
    )
    said += (
        f"{given.size:,} parameters where clients grow, {given.cohort} clients where parameters grow; the software\n"
    )
    said += f"TEE's own processes count, what hardware costs isn't in it; secagg: a ring of 64 bits\n\n{text(lines)}"
    print(said)
    for path in save(lines, given.out, said) if given.out else ():
        print(path)


if __name__ == "__main__":
    main()
