"""``privbench overhead record``: time workloads on this machine."""

import argparse
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from privbench.benchmarks.build import ConfigError, require

RECORDED, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
CONF = "privbench.conf.overhead"

DESCRIPTION = """\
Detect what protects this machine, fingerprint it, time workloads on it, and write all of that to one file. Inside an
SEV-SNP guest the record's digest goes into an attestation report; its times stay that guest's word.

example:
  privbench overhead record --out plain.json arm=plain
  privbench overhead record --out chase.json set=quick workload=pointer_chase workloads.pointer_chase.steps=500000
"""


def record(arguments: list[str]) -> int:
    """0 when recorded; 1 where a case failed or no report was to be had; 2 for bad input; 130 for Ctrl-C."""
    options = _parser().parse_intermixed_args(arguments)
    from privbench.benchmarks.overhead import record as records
    from privbench.benchmarks.overhead import recording, showing
    from privbench.defenses.tee.platforms.platform import Unavailable

    try:
        what = recording.checked(compose(options.overrides, options.config_dir))
        folder = options.out.parent
        require(folder.is_dir() and os.access(folder, os.W_OK), "out", str(options.out), "a file in a folder to write")
        require(not options.out.exists(), "out", str(options.out), "a file that isn't there yet")
        made, fault = recording.record(what, lambda one: print(showing.line(one), flush=True))
        records.write(options.out, made)
    except Unavailable as error:
        print(f"privbench overhead: nothing was timed: {error}", file=sys.stderr)
        return FAILED
    except (ConfigError, OSError) as error:
        print(f"privbench overhead: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("privbench overhead: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    print("\n".join(showing.worth(made)))
    print(options.out)
    if fault:
        print(f"privbench overhead: recorded, but {fault}", file=sys.stderr)
    return FAILED if fault else RECORDED


def compose(overrides: list[str], config_dir: str | None = None) -> dict[str, Any]:
    """The configuration of a command line, as plain containers.

    Raises:
        ConfigError: a key, a group or an option that isn't there.
    """
    from hydra.types import RunMode

    from privbench.benchmarks import sweep

    with sweep.searching(config_dir, CONF) as hydra:
        found = hydra.compose_config("record", overrides, run_mode=RunMode.RUN, with_log_configuration=False)
        return sweep.plain(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="privbench overhead record",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_choices(),
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the settings below")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the record, JSON")
    parser.add_argument("-cd", "--config-dir", metavar="DIR", help="with workload/*.yaml and set/*.yaml of your own")
    return parser


def _choices() -> str:
    conf = files("privbench.conf").joinpath("overhead")
    names = {g: sorted(f.name.removesuffix(".yaml") for f in conf.joinpath(g).iterdir()) for g in ("set", "workload")}
    groups = [f"  {group}: {', '.join(found)}" for group, found in names.items()]
    settings = conf.joinpath("record.yaml").read_text().partition("- set: default\n")[2].strip()
    return "\n".join(["groups (workload=[a,b] chooses several):", *groups, "", "settings:", settings])
