"""Results in memory: what was run, which arms may be averaged, and which are refused."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from privbench.benchmarks.build import canonical
from privbench.benchmarks.results.arms import Arm, group, order
from privbench.benchmarks.results.read import MalformedError, read_json, read_run
from privbench.benchmarks.results.runs import Run

APART = ("defense", "poisoning")
"""Groups of settings that runs of one setup may differ in."""


@dataclass(frozen=True)
class Refusal:
    """Why an arm has no mean.

    Args:
        key: of the arm, ``None`` where none of its runs is there.
        label: of the arm.
        runs: ids of the runs at fault.
        reason: what is wrong with them.
    """

    key: str | None
    label: str
    runs: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.label}: {self.reason} ({', '.join(self.runs)})"


class Refused(ValueError):
    """An aggregation would have been a wrong number. ``refusals`` say which, each with run ids."""

    def __init__(self, refusals: list[Refusal]):
        super().__init__("refused to aggregate:\n" + "\n".join(f"  {r}" for r in refusals))
        self.refusals = refusals


@dataclass(frozen=True)
class Missing:
    """A run that an index names and that isn't there."""

    id: str
    label: str
    reason: str


@dataclass(frozen=True)
class Results:
    """Loaded runs.

    Args:
        path: what was loaded.
        kind: what ``path`` is.
        runs: in the order of the sweep's index; of a root by defense, poisoner and settings.
        missing: runs that are named and not there.
        mixed_revisions: whether runs of several revisions may stand side by side; they are labelled then.
        repeats: of ``runs``, with the same numbers at other costs: they are in no mean but those of costs.
    """

    path: Path
    kind: Literal["run", "sweep", "root"]
    runs: tuple[Run, ...]
    missing: tuple[Missing, ...] = ()
    mixed_revisions: bool = False
    repeats: tuple[Run, ...] = ()

    @classmethod
    def of(
        cls,
        path: Path,
        kind: Literal["run", "sweep", "root"],
        found: Iterable[Run],
        missing: tuple[Missing, ...],
        mixed_revisions: bool,
    ) -> "Results":
        """What was found, with repeats apart: the lowest number of each run's is in ``runs``."""
        every = [*found]
        lowest: dict[str, int] = {}
        for run in every:
            name = run.id.partition("-r")[0]
            lowest[name] = min(run.repeat, lowest.get(name, run.repeat))
        again = tuple(r for r in every if r.repeat > lowest[r.id.partition("-r")[0]])
        return cls(path, kind, tuple(r for r in every if r not in again), missing, mixed_revisions, again)

    def frame(self) -> pd.DataFrame:
        """Every metric of every run, tidy: one row a metric. Nothing is averaged, so nothing is refused."""
        labels = {arm.key: arm.label for arm in self._arms()}
        columns = ["run", "label", "defense", "poisoning", "seed", "repeat", "run_status", "metric", "round", "client"]
        columns += ["adversary", "value", "unit", "status", "reason"]
        rows = []
        for r in (*self.runs, *self.repeats):
            own = (r.id, labels[r.arm_key], r.defense, r.poisoning, r.seed, r.repeat, r.status)
            for m in r.metrics:
                rows.append((*own, m.name, m.round, m.client, m.adversary, m.value, m.unit, m.status, m.reason))
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype({"round": "Int64", "client": "Int64", "value": "float64"})

    def arms(self) -> list[Arm]:
        """The arms, ready to be averaged over seeds.

        Raises:
            Refused: if one of them is not; :meth:`split` gives those that are.
        """
        refusals = self.refusals()
        if refusals:
            raise Refused(refusals)
        return self._arms()

    def aggregate(self, metric: str, adversary: str | None = None) -> pd.DataFrame:
        """Mean and 95% half-width over seeds, one row an arm: the last round's value, or for an ``adversary`` the mean
        over all rounds and victims it attacked.

        Raises:
            Refused: as :meth:`arms`.
        """
        rows = []
        for arm in self.arms():
            found = arm.final(metric) if adversary is None else arm.leakage(metric, adversary)
            rows.append((arm.label, arm.n, found.mean, found.half_width, found.state))
        return pd.DataFrame(rows, columns=["label", "n", "mean", "half_width", "state"])

    def split(self) -> tuple["Results", list[Refusal]]:
        """The results without the refused arms, and what was refused."""
        refusals = self.refusals()
        bad = {r.key for r in refusals}
        kept = tuple(r for arm in self._arms() if arm.key not in bad for r in arm.runs)
        repeats = tuple(r for r in self.repeats if r.arm_key not in bad)
        return replace(self, runs=kept, repeats=repeats, missing=()), refusals

    def setups(self, apart: Sequence[str] = APART) -> list[tuple[str, "Results"]]:
        """The results by setup, each with a name; a single one has none.

        Args:
            apart: groups of settings that runs of one setup may differ in.
        """
        by_key: dict[str, list[Run]] = {}
        for run in self.runs:
            by_key.setdefault(_bare(run, apart).arm_key, []).append(run)
        # One run of each, as if without what they differ in, is labelled by what tells the setups apart.
        bare = group(_bare(r[0], apart) for r in by_key.values())
        names = {a.key: ", ".join(a.more) for a in bare}
        return [(names[k], replace(self, runs=tuple(r))) for k, r in by_key.items()]

    def twin(self, run: Run) -> Run | None:
        """The complete run with the same settings and seed but without the poisoner."""
        twins = (r for r in self.runs if not r.poisoned and r.status == "complete" and r.twin_key == run.twin_key)
        return next(twins, None)

    def idle(self, run: Run) -> Run | None:
        """The complete run with the same settings and seed whose poisoner poisons no record (``poisoning.records=0``).

        Its success rate is a floor like that of a run without the poisoner.
        """
        if not run.poisoned:
            return None
        idle = canonical(run.settings | {"poisoning": {**run.settings["poisoning"], "records": 0}})
        found = (r for r in self.runs if r.seed == run.seed and r.status == "complete" and r.arm_key == idle)
        return next(found, None)

    def _arms(self) -> list[Arm]:
        return group(self.runs, revisions=self.mixed_revisions and len({r.revision for r in self.runs}) > 1)

    def refusals(self) -> list[Refusal]:
        """Every reason against averaging, by arm; empty where all arms are complete."""
        mine: dict[str, list[Run]] = {}
        for run in self.repeats:
            mine.setdefault(run.arm_key, []).append(run)
        arms = [replace(arm, runs=(*arm.runs, *mine.get(arm.key, ()))) for arm in self._arms()]
        found: list[Refusal] = []
        prefixes = {r.id.rpartition("-s")[0] for r in self.runs}
        for lost in self.missing:
            if lost.id.rpartition("-s")[0] not in prefixes:
                found.append(Refusal(None, lost.label, (lost.id,), lost.reason))
        for arm in arms:
            found += self._incomplete(arm) + self._missing_seeds(arm, arms) + _assurance(arm)
        return found if self.mixed_revisions else found + self._revisions(arms)

    def _incomplete(self, arm: Arm) -> list[Refusal]:
        found = []
        for status in ("failed", "diverged", "running"):
            bad = [r for r in arm.runs if r.status == status]
            if bad:
                errors = sorted({" ".join(str(r.manifest["error"]).split()) for r in bad if r.manifest.get("error")})
                reason = f"{len(bad)} of {arm.n} runs {status}" + (f": {'; '.join(errors)}" if errors else "")
                found.append(Refusal(arm.key, arm.label, tuple(r.id for r in bad), reason))
        twice = sorted({s for (s, _), n in Counter((r.seed, r.repeat) for r in arm.runs).items() if n > 1})
        if twice:
            ids = tuple(r.id for r in arm.runs if r.seed in twice)
            found.append(Refusal(arm.key, arm.label, ids, f"seeds {twice} more than once"))
        return found

    def _missing_seeds(self, arm: Arm, arms: list[Arm]) -> list[Refusal]:
        prefixes = {r.id.rpartition("-s")[0] for r in arm.runs}
        lost = [m for m in self.missing if m.id.rpartition("-s")[0] in prefixes]
        found = [Refusal(arm.key, arm.label, (m.id,), m.reason) for m in lost]
        setup = arm.runs[0].setup_key
        expected = {s for a in arms if a.runs[0].setup_key == setup for s in a.seeds}
        named = {int(s) for s in (m.id.rpartition("-s")[2] for m in lost) if s.isdigit()}
        absent = sorted(expected - set(arm.seeds) - named)
        if absent:
            ids = tuple(f"{sorted(prefixes)[0]}-s{s}" for s in absent)
            found.append(Refusal(arm.key, arm.label, ids, f"seeds {absent} are missing that other arms have"))
        return found

    def _revisions(self, arms: list[Arm]) -> list[Refusal]:
        """The revision with most runs stays (the latest of equals); arms with runs of another are refused."""
        runs = [r for arm in arms for r in arm.runs]
        counts = Counter(r.revision for r in runs)
        if len(counts) < 2:
            return []
        latest = {v: max(str(r.manifest.get("started")) for r in runs if r.revision == v) for v in counts}
        most = max(counts, key=lambda v: (counts[v], latest[v]))
        found = []
        for arm in arms:
            other = [r for r in arm.runs if r.revision != most]
            if other:
                reason = f"revision {' and '.join(sorted({r.revision for r in other}))}, most runs have {most}"
                found.append(Refusal(arm.key, arm.label, tuple(r.id for r in other), f"mixed revisions: {reason}"))
        return found


def _assurance(arm: Arm) -> list[Refusal]:
    """``software`` is labelled as such and never averaged with anything else; nothing is believed without evidence.

    What the evidence's bytes show (``shown_assurance``) counts; a manifest that claims anything else is refused.
    """
    found = []
    for run in arm.runs:
        claim, shown = run.manifest["assurance"], run.manifest["shown_assurance"]
        if claim != shown and run.status == "complete":
            named = "a software TEE passed off as hardware: " if (claim, shown) == ("hardware", "software") else ""
            reason = f"{named}assurance {claim} is claimed, its evidence shows {shown}"
            found.append(Refusal(arm.key, arm.label, (run.id,), reason))
        elif run.attested and shown == "none" and run.status == "complete":
            reason = "the defense attests its aggregator, and there is no evidence that holds"
            found.append(Refusal(arm.key, arm.label, (run.id,), reason))
    shown = {r.manifest["shown_assurance"] for r in arm.runs}
    if len(shown) > 1 and not found:
        reason = f"mixed assurance: {' and '.join(sorted(shown))} in one arm"
        found.append(Refusal(arm.key, arm.label, tuple(r.id for r in arm.runs), reason))
    return found


def _bare(run: Run, apart: Sequence[str]) -> Run:
    settings = {k: v for k, v in run.settings.items() if k not in apart}
    choices = {**run.choices, **dict.fromkeys(apart, "none"), "channel": None}
    nothing = dict.fromkeys(("assurance", "shown_assurance"), "none")
    return replace(run, manifest={**run.manifest, "settings": settings, "choices": choices, **nothing})


def load(path: str | Path, mixed_revisions: bool = False) -> Results:
    """Load a run directory, a sweep directory or a results root (a directory with ``runs/``).

    Args:
        path: the directory.
        mixed_revisions: let runs of several revisions stand side by side, labelled, instead of refusing them.

    Raises:
        FileNotFoundError: if ``path`` is none of the three.
        MalformedError: naming the file and line that break the format.
    """
    path = Path(path)
    if (path / "manifest.json").exists():
        return Results.of(path, "run", (read_run(path),), (), mixed_revisions)
    if (path / "sweep.json").exists():
        runs, missing = _read_sweep(path)
        return Results.of(path, "sweep", runs, missing, mixed_revisions)
    if (path / "runs").is_dir():
        folders = sorted(p for p in (path / "runs").iterdir() if p.is_dir() and not p.name.startswith("."))
        runs = tuple(sorted((read_run(p) for p in folders if (p / "manifest.json").exists()), key=order))
        bare = (p.name for p in folders if not (p / "manifest.json").exists())
        return Results.of(path, "root", runs, tuple(Missing(n, n, "no manifest.json") for n in bare), mixed_revisions)
    raise FileNotFoundError(f"{path}: no run (manifest.json), no sweep (sweep.json) and no results (runs/) there")


def _read_sweep(path: Path) -> tuple[tuple[Run, ...], tuple[Missing, ...]]:
    index = path / "sweep.json"
    entries = read_json(index).get("runs")
    if not isinstance(entries, list):
        raise MalformedError(index, 1, "'runs' is not a list")
    runs: dict[str, Run] = {}
    missing: dict[str, Missing] = {}
    for number, entry in enumerate(entries):
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("path"), str)
            or not isinstance(entry.get("id"), str)
        ):
            raise MalformedError(index, 1, f"runs[{number}] needs 'path' and 'id'")
        folder = path / entry["path"]
        if (folder / "manifest.json").exists():
            run = read_run(folder)
            if run.id != entry["id"]:
                raise MalformedError(index, 1, f"runs[{number}] is {entry['id']}, its manifest says {run.id}")
            runs.setdefault(run.id, run)
        else:
            label = " ".join(str(o) for o in entry.get("overrides") or ()) or entry["id"]
            reason = f"the sweep names it, status {entry.get('status')}, and it is not there"
            missing.setdefault(entry["id"], Missing(entry["id"], label, reason))
    return tuple(runs.values()), tuple(missing.values())
