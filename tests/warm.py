"""The console script in a process that has imported everything already: a start of seconds less for each command.

A server imports once and forks for each command, which then has a process, folder, environment and output of its own,
as if it had been started from a shell. A request is a line of JSON; the answer is the exit status, or -signal. The
fixture ``console`` in ``conftest.py`` asks.
"""

import importlib
import json
import os
import sys
import traceback

IMPORTED = (
    "hydra",
    "matplotlib.pyplot",
    "opacus",
    "privbench.benchmarks.cli",
    "privbench.benchmarks.job",
    "privbench.benchmarks.sweep",
    "privbench.benchmarks.results.report",
    "privbench.defenses.accounting.command",
)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _become(asked: dict) -> None:
    """The forked process runs its command and never returns."""
    for number, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    # As an interpreter would: the folder of this file isn't where commands look for modules, the variable's are.
    sys.path[:1] = [os.path.abspath(p) for p in asked["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.argv = ["privbench", *asked["arguments"]]
    status = 1
    try:
        sys.modules["privbench.benchmarks.cli"].main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
