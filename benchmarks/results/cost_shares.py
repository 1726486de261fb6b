"""Which parts of a round take a defense's CPU seconds, from the spans of profiled runs: a table and a figure."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from privbench.benchmarks.results.arms import Estimate
from privbench.benchmarks.results.costs import Costs, costs
from privbench.benchmarks.results.load import Results
from privbench.benchmarks.results.runs import Run
from privbench.benchmarks.results.style import COLUMN, PAGE, new, style, wrap
from privbench.benchmarks.results.tabular import Table, percent

NAME = "cost_shares"
OTHER = "other"
PARTS: Mapping[str, tuple[str, ...]] = {
    "local training": ("local_training",),
    "per-sample gradients": ("per_sample_gradients",),
    "noise, clipping": ("local_noise", "local_mechanism", "release"),
    "attestation": ("attestation",),
    "encryption": ("encryption",),
    "receipts": ("receipts",),
    "rule": ("rule",),
    "carrying messages": ("waiting",),
}
"""What is drawn, and the spans that it is made of; :data:`OTHER` is the rest of the CPU seconds."""
LOOKS = ("#B8B8B8", "#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#E69F00", "#009E73", "#4D4D4D", "#F0F0F0")


def shares(run: Run) -> dict[str, float] | None:
    """Each part's share of a run's CPU seconds, without its first round if there are others; together they are 1.

    ``None`` for a run without spans.
    """
    rounds = sorted(run.series("cpu_seconds"))
    rounds = rounds[1:] or rounds
    whole = _sum(run, "cpu_seconds", rounds)
    if not whole or not run.rows("span_round_cpu_seconds"):
        return None
    parts = {
        part: sum(_sum(run, f"span_{name}_cpu_seconds", rounds) for name in names) for part, names in PARTS.items()
    }
    # The CPU seconds of a process that ended within a round are in its spans alone.
    whole = max(whole, sum(parts.values()))
    return {**{part: taken / whole for part, taken in parts.items()}, OTHER: 1 - sum(parts.values()) / whole}


def _sum(run: Run, metric: str, rounds: Sequence[int]) -> float:
    series = run.series(metric)
    return sum(series.get(number, 0.0) for number in rounds)


def estimates(one: Costs) -> dict[str, Estimate] | None:
    """The shares over an arm's runs; ``None`` if one of them has no spans."""
    each = [shares(r) for r in one.arm.runs]
    known = [s for s in each if s is not None]
    if len(known) < len(each):
        return None
    return {part: Estimate(tuple(s[part] for s in known), "ok", len(known)) for part in (*PARTS, OTHER)}


def share_table(results: Results) -> Table | None:
    """One row an arm, in percent of its CPU seconds; ``None`` without profiled arms to compare.

    Raises:
        Refused: if an arm can't be averaged.
    """
    every = [(one, found) for setup in costs(results) for one in setup if (found := estimates(one))]
    if not every:
        return None
    rows = tuple(
        (one.model, one.defense, f"n={one.arm.n}", *(percent(found[part]) for part in (*PARTS, OTHER)))
        for one, found in every
    )
    records = tuple(
        {
            "model": one.model,
            "parameters": one.parameters,
            "defense": one.arm.defense,
            "n": one.arm.n,
            **{f"share[{part}]_mean": found[part].mean for part in (*PARTS, OTHER)},
            **{f"share[{part}]_half_width": found[part].half_width for part in (*PARTS, OTHER)},
        }
        for one, found in every
    )
    notes = (
        "in percent of a round's CPU seconds, all processes together, each part without the parts that lie in it.",
        "carrying messages: between processes; other: their own work around these parts, and an emulated platform.",
    )
    headers = ("model", "defense", "n", *(f"{part} (%)" for part in (*PARTS, OTHER)))
    return Table(headers, rows, notes, records)


def cost_shares(results: Results) -> Figure | None:
    """CPU seconds of a round over those without a defense, a bar a defense and a panel a setup, stacked by part.

    A bar ends at the mean ratio, its whisker is the 95% interval. ``None`` without profiled arms beside a run without
    a defense.

    Raises:
        Refused: if an arm can't be averaged.
    """
    setups = []
    for setup in costs(results):
        shown = [(one, found) for one in setup if (found := estimates(one)) and _length(one)]
        if len(shown) > 1 and any(one.arm.defense == "none" for one, _ in shown):
            setups.append(shown)
    if not setups:
        return None
    names = list(dict.fromkeys(one.defense for setup in setups for one, _ in setup))
    wide = len(setups) > 1
    with style():
        figure = new(PAGE if wide else COLUMN, (1.15 if wide else 2.0) + 0.19 * len(names))
        panels = figure.subplots(1, len(setups), sharey=True, squeeze=False)[0]
        for axes, setup in zip(panels, setups, strict=True):
            _panel(axes, setup, names)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        handles, labels = panels[0].get_legend_handles_labels()
        columns = 5 if wide else 2
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        panels[len(panels) // 2].set_xlabel(
            wrap("CPU seconds of a round, over those without a defense", 60 if wide else 30)
        )
        figure.suptitle(wrap(_runs(setups), 120 if wide else 50), fontsize=7)
    return figure


def _length(one: Costs) -> float | None:
    """Of an arm's bar."""
    if one.arm.defense == "none":
        return 1.0
    ratio = one.ratios.get("cpu_seconds")
    return ratio.mean if ratio else None


def _panel(axes: Axes, setup: Sequence[tuple[Costs, Mapping[str, Estimate]]], names: Sequence[str]) -> None:
    for part, colour in zip((*PARTS, OTHER), LOOKS, strict=True):
        axes.barh([-9], [0], color=colour, edgecolor="#555555", linewidth=0.3, label=part)
    for one, found in setup:
        row, length, start = names.index(one.defense), _length(one) or 0.0, 0.0
        whole = sum(found[part].mean or 0.0 for part in (*PARTS, OTHER))
        for part, colour in zip((*PARTS, OTHER), LOOKS, strict=True):
            width = length * (found[part].mean or 0.0) / whole
            axes.barh(row, width, 0.72, left=start, color=colour, edgecolor="#555555", linewidth=0.3)
            start += width
        ratio = one.ratios.get("cpu_seconds")
        if ratio is not None and ratio.low is not None and ratio.high is not None:
            error = [[ratio.mean - ratio.low], [ratio.high - ratio.mean]]
            axes.errorbar(ratio.mean, row, xerr=error, color="black", linewidth=0.8, capsize=1.5)
    axes.axvline(1, color="#555555", linestyle=":", linewidth=0.9)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"{setup[0][0].model}, {setup[0][0].parameters:,} parameters")


def _runs(setups: Sequence[Sequence[tuple[Costs, Mapping[str, Estimate]]]]) -> str:
    every = [one for setup in setups for one, _ in setup]
    counts = sorted({one.arm.n for one in every})
    runs = f"n = {' to '.join(map(str, sorted({counts[0], counts[-1]})))} runs"
    said = [runs + (", 95% interval of the ratio" if counts[-1] > 1 else ", no interval")]
    if any("software TEE" in one.arm.more for one in every):
        said.append("software TEE: emulated, without what hardware costs")
    return "; ".join(said)
