"""``privbench overhead compare``: arms with each other."""

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from privbench.benchmarks.conform import ConfigError, require

if TYPE_CHECKING:
    from privbench.benchmarks.overhead.compare import Comparison

COMPARED, REFUSED, BAD_INPUT = 0, 1, 2
WIDE = 170
"""Characters of a table that goes into a file or a pipe."""

DESCRIPTION = """\
Compare records (privbench overhead record) of arms: the time of each workload as a ratio to the first record's arm,
with an interval over boots, and plain against plain (the null) beside it: records of the arm "again" are the base a
second time. Records whose machines, packages, settings or workloads differ are refused, and what differs is named; so
are records of a software TEE. What others published is a table and a panel of its own.

examples:
  privbench overhead compare records/*-plain.json records/*-again.json records/*-sev_snp.json --out comparison
  privbench overhead compare plain/ again/ snp/ --allow machine.kernel.release
"""


def compare(arguments: list[str]) -> int:
    """0 when compared; 1 when the records are refused; 2 for bad input."""
    options = _parser().parse_args(arguments)
    from rich.console import Console

    from privbench.benchmarks.overhead import compare as comparing
    from privbench.benchmarks.overhead import compare_table as tables
    from privbench.benchmarks.overhead.admit import Incomparable

    try:
        require(options.out is None or not options.out.is_file(), "out", str(options.out), "a folder")
        found = comparing.compare(
            comparing.load(options.records),
            options.base,
            options.null,
            options.cluster,
            options.allow,
            options.level,
            options.seed,
            _time(options.at),
        )
        written = [] if options.out is None else _write(found, options.out)
    except Incomparable as error:
        print(f"privbench overhead compare: {error}", file=sys.stderr)
        return REFUSED
    except (ConfigError, OSError) as error:
        print(f"privbench overhead compare: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    for table in (tables.measured(found), tables.emulated(found)):
        if table is not None:
            print(table.text(Console().width if sys.stdout.isatty() else WIDE))
    for path in written:
        print(path)
    return COMPARED


def _write(found: "Comparison", folder: Path) -> list[Path]:
    from privbench.benchmarks.overhead import compare_table as tables
    from privbench.benchmarks.overhead.compare_figure import draw

    folder.mkdir(parents=True, exist_ok=True)
    every = {
        "measured": tables.measured(found),
        "emulated": tables.emulated(found),
        "literature": tables.literature(),
        "projection": tables.projection(found),
    }
    made = {name: table for name, table in every.items() if table is not None}
    written = []
    for name, table in made.items():
        for suffix, text in ((".txt", table.text()), (".csv", table.csv()), (".tex", table.latex())):
            written.append(folder / f"{name}{suffix}")
            written[-1].write_text(text, encoding="utf-8")
    whole = {
        "schema": "privbench overhead comparison 2",
        "base": found.base,
        "pair": found.pair,
        "level": found.level,
        "cluster": found.cluster,
        "boots": dict(found.boots),
        "standing": {arm: {"assurance": p.assurance, "reason": p.reason} for arm, p in found.standing.items()},
        "notes": found.notes,
        "rows": made["measured"].records if "measured" in made else (),
        "emulated_rows": made["emulated"].records if "emulated" in made else (),
    }
    written.append(folder / "comparison.json")
    written[-1].write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return [*written, *(draw(found, folder / "comparison") if "measured" in made else ())]


def _time(text: str | None) -> datetime | None:
    from privbench.benchmarks.overhead.record import moment

    if text is None:
        return None
    if (found := moment(text)) is None:
        raise ConfigError("at", text, "a time with its offset, such as 2026-01-31T12:00:00Z")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="privbench overhead compare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", nargs="+", metavar="RECORD", help="files, or folders of *.json; the base's first")
    parser.add_argument("--base", metavar="ARM", help="what others are divided by (default: the first record's arm)")
    parser.add_argument("--null", default="again", metavar="ARM", help="plain a second time (default: again)")
    parser.add_argument(
        "--cluster",
        choices=("boot", "record"),
        default="boot",
        help="what counts as one number (default: boot); record where all were taken in one boot",
    )
    parser.add_argument("--allow", nargs="+", action="extend", default=[], metavar="FIELD", help="may differ, noted")
    parser.add_argument("--level", type=float, default=0.95, metavar="X", help="of the intervals (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")
    parser.add_argument("--at", metavar="RFC3339", help="when reports' certificates have to be valid (default: now)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for tables (text, CSV, LaTeX), JSON and the figure")
    return parser
