"""A plan: everything a person needs to take the arms of an overhead measurement on a host with SEV-SNP."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead import plan_cloud as cloud
from privbench.benchmarks.overhead import plan_scripts as scripts
from privbench.benchmarks.overhead.plan_arms import BASE, Arm
from privbench.benchmarks.overhead.plan_domain import domain
from privbench.benchmarks.overhead.plan_machine import Machine
from privbench.benchmarks.overhead.plan_qemu import script
from privbench.benchmarks.overhead.plan_readme import readme
from privbench.benchmarks.overhead.plan_schedule import Boot, schedule

SCHEMA = "privbench overhead plan 1"


@dataclass(frozen=True)
class Plan:
    """A plan before it is written.

    Args:
        machine: what the arms share.
        arms: what they differ in.
        boots: of each arm; even.
        seed: of the schedule.
    """

    machine: Machine
    arms: Sequence[Arm]
    boots: int = 6
    seed: int = 0

    @property
    def schedule(self) -> list[Boot]:
        return schedule([a.name for a in self.arms], self.boots, self.seed)


def write(plan: Plan, folder: Path) -> list[Path]:
    """Write a plan's files; returns their paths, the domains' among them.

    Raises:
        ConfigError: the schedule can't be made, or the folder holds a plan already.
        OSError: a file can't be written.
    """
    order = plan.schedule
    require(not (folder / "plan.json").exists(), "out", str(folder), "a folder without a plan")
    files = {f"libvirt/{a.name}.xml": domain(plan.machine, a) for a in plan.arms}
    files |= {f"qemu/{a.name}.sh": script(plan.machine, a) for a in plan.arms}
    files |= {
        "cloud-init/user-data": cloud.user_data(),
        "openstack/create.sh": cloud.openstack(plan.machine, plan.arms),
        "prepare.sh": scripts.prepare(plan.machine),
        "boots.sh": scripts.boots(plan.machine),
        "schedule.csv": _csv(order),
        "README.md": readme(plan.machine, plan.arms, order),
        "plan.json": json.dumps(_described(plan, order), indent=2) + "\n",
    }
    written = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            path.chmod(0o755)
        written.append(path)
    return written


def record_name(boot: Boot) -> str:
    """Where a boot's record lies in the plan's folder."""
    return f"records/{boot.number:03d}-{boot.arm}.json"


def _csv(order: Sequence[Boot]) -> str:
    lines = [f"{b.number},{b.block},{b.arm},{b.boot},{record_name(b)}" for b in order]
    return "\n".join(["number,block,arm,boot,record", *lines]) + "\n"


def _described(plan: Plan, order: Sequence[Boot]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "privbench": version("privbench"),
        "seed": plan.seed,
        "boots": plan.boots,
        "base": BASE,
        "machine": asdict(plan.machine),
        "arms": [{**asdict(a), "policy": a.policy} for a in plan.arms],
        "schedule": [{**asdict(b), "record": record_name(b)} for b in order],
    }
