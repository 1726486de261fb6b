"""Which of several processes this one is, as torchrun or srun says in the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from privbench.benchmarks.conform import ConfigError, require

TORCHRUN = {"rank": "RANK", "world": "WORLD_SIZE"}
SRUN = {"rank": "SLURM_PROCID", "world": "SLURM_NTASKS"}
MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Where ranks meet; torchrun sets both, a SLURM script has to."""


@dataclass(frozen=True)
class Launch:
    """One process of a launch.

    Args:
        rank: from 0, which coordinates.
        world: how many there are.
        address, port: where they meet: a host that all reach, and a port that is free on it.
    """

    rank: int
    world: int
    address: str
    port: int


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank, 0 where nothing launched several."""
    names = _names(environment)
    found = environment.get(names["rank"], "0") if names else "0"
    return int(found) if found.isdecimal() else 0


def by_torchrun(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes torchrun launched together with this one; 0 if it launched none."""
    found = environment.get(TORCHRUN["world"], "0") if "TORCHELASTIC_RUN_ID" in environment else "0"
    return int(found) if found.isdecimal() else 0


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the environment says.

    Raises:
        ConfigError: naming the variables that are missing or wrong.
    """
    names = _names(environment) or TORCHRUN
    needed = (*names.values(), *MEETING)
    missing = [name for name in needed if not environment.get(name)]
    hint = f"started by torchrun, or by srun with {' and '.join(MEETING)} (docs/clusters.md); "
    require(not missing, "federation.engine", "distributed", f"{hint}not set: {', '.join(missing)}")
    values = {}
    for name in (*names.values(), "MASTER_PORT"):
        if not environment[name].isdecimal():
            raise ConfigError(name, environment[name], "a whole number, as torchrun and srun set it")
        values[name] = int(environment[name])
    found = Launch(values[names["rank"]], values[names["world"]], environment["MASTER_ADDR"], values["MASTER_PORT"])
    require(found.rank < found.world, names["rank"], found.rank, f"below {names['world']}={found.world}")
    require(0 < found.port < 2**16, "MASTER_PORT", found.port, "a port, from 1 to 65535")
    return found


def _names(environment: Mapping[str, str]) -> Mapping[str, str] | None:
    """Variables of rank and number: torchrun's first, which may itself have been started by srun."""
    return next((names for names in (TORCHRUN, SRUN) if names["rank"] in environment), None)
