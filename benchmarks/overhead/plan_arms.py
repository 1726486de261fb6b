"""The arms of an overhead measurement: virtual machines that differ in their protection alone."""

from dataclasses import dataclass
from typing import Literal

from privbench.benchmarks.conform import ConfigError

Launch = Literal["none", "sev", "sev-es", "sev-snp"]


@dataclass(frozen=True)
class Arm:
    """One arm.

    Args:
        name: also of its files, its domain and its records.
        launch: what the hypervisor is asked for.
        tells: what the arm is there for.
        append: what it adds to the guest's kernel command line.
        nova: the value of ``hw:mem_encryption_model``; ``None`` where Nova has no setting that makes this arm.
        openstack: whether an OpenStack can start it by flavor and image alone.
    """

    name: str
    launch: Launch
    tells: str
    append: str = ""
    nova: str | None = None
    openstack: bool = True

    @property
    def policy(self) -> int | None:
        """The guest policy, which forbids debugging (AMD 55766 for SEV and SEV-ES, AMD 56860 for SEV-SNP)."""
        # SEV: no debugging (bit 0), no key sharing (1); SEV-ES adds bit 2. SEV-SNP: SMT (16), one that must be 1 (17).
        return {"none": None, "sev": 0x3, "sev-es": 0x7, "sev-snp": 0x30000}[self.launch]


ARMS = (
    Arm("plain", "none", "what all others are compared with"),
    Arm("again", "none", "plain a second time: plain against plain says what differs without any protection"),
    Arm(
        "swiotlb",
        "none",
        "plain with all device I/O copied through bounce buffers, as in an encrypted guest",
        append="swiotlb=force",
        openstack=False,
    ),
    Arm("sev", "sev", "encrypted memory", nova="amd-sev"),
    Arm("sev_es", "sev-es", "encrypted memory and registers", nova="amd-sev-es"),
    Arm("sev_snp", "sev-snp", "encrypted memory and registers, integrity by the reverse map table", nova="amd-sev-snp"),
)
BASE = "plain"
NEEDED = ("plain", "again")


def choose(names: str) -> tuple[Arm, ...]:
    """The arms that ``names`` lists, in the order of :data:`ARMS`.

    Args:
        names: separated by commas; ``plain`` and ``again`` belong to every measurement.

    Raises:
        ConfigError: an unknown name, or one of the two that are needed is missing.
    """
    known = {a.name: a for a in ARMS}
    given = [n.strip() for n in names.split(",")]
    for name in given:
        if name not in known:
            raise ConfigError("arms", name, f"of {', '.join(known)}")
    for name in NEEDED:
        if name not in given:
            raise ConfigError("arms", names, f"with {name}: {known[name].tells}")
    if len(set(given)) < 3:
        raise ConfigError("arms", names, "an arm to compare with plain as well")
    return tuple(a for a in ARMS if a.name in given)
