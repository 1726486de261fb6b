"""``privbench overhead show``: a record, and what stands behind it."""

import argparse
import sys
from pathlib import Path

from privbench.benchmarks.build import ConfigError

SHOWN, BAD_INPUT = 0, 2


def show(arguments: list[str]) -> int:
    """0 when shown; 2 for what is no record."""
    parser = argparse.ArgumentParser(
        prog="privbench overhead show",
        description="Print a record. Its assurance is recomputed from the report's bytes, whatever its fields say.",
    )
    parser.add_argument("record", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    from privbench.benchmarks.overhead import record, showing

    try:
        found = record.read(options.record)
    except ConfigError as error:
        print(f"privbench overhead: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    for line in showing.lines(found):
        # A record comes from elsewhere: no escape codes of its own get out.
        print("".join(c if c.isprintable() or c == "\n" else "?" for c in line))
    return SHOWN
