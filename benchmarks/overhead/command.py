"""``privbench overhead``: what protection costs, measured or not claimed. Each subcommand is a file of its own."""

import importlib
import sys

BAD_INPUT = 2

SUBCOMMANDS = {
    "record": "time workloads on this machine, with what protects it",
    "show": "print a record and what stands behind it",
    "compare": "arms with each other, each workload as a ratio with its interval",
    "plan": "write what it takes to measure on a host with SEV-SNP",
}
"""What each does. ``x`` is the function ``x`` of the module ``x_command`` beside this one, imported when it is run."""


def overhead(arguments: list[str]) -> int:
    """Run one subcommand, and return its exit status; 2 for an unknown one."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else BAD_INPUT
    if name not in SUBCOMMANDS:
        print(f"privbench overhead: {name}: of {', '.join(SUBCOMMANDS)}", file=sys.stderr)
        return BAD_INPUT
    module = importlib.import_module(f"privbench.benchmarks.overhead.{name}_command")
    return getattr(module, name)(arguments[1:])


def _usage() -> str:
    lines = [f"  {name:<10}{what}" for name, what in SUBCOMMANDS.items()]
    return "\n".join(["usage: privbench overhead SUBCOMMAND ...", "", *lines, "", "SUBCOMMAND --help says more."])
