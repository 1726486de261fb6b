"""The attested channel: clients send updates only to an aggregator that proves what it is."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from privbench.benchmarks.build import RUNTIME, require
from privbench.benchmarks.federation.server import ServerState
from privbench.defenses.channel.channel import Setup

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Facts, Plan
    from privbench.defenses.tee.protocol.session import AttestedSession


@dataclass(frozen=True)
class Attested:
    """An attested aggregator, on a platform that can show what it launched.

    Args:
        platform: ``software`` emulates a TEE and assures nothing; ``sev_snp`` is the AMD SEV-SNP guest that all of the
            run happens in, which keeps the machine's owner out.
        least_cohort: a round of fewer updates releases nothing and stops the run. ``None``: 1, but 0 where a guarantee
            counts on Poisson sampling, since a round without clients must look like any other.
        greatest_age: seconds from a client's nonce after which it takes the evidence for old.
        auditors: X25519 public keys, in hexadecimal, that full receipts are sealed to.
        attest_clients: clients train in guests of their own and prove code, settings and update to the aggregator,
            which refuses whoever doesn't. On the software platform.
        downlink: ``plain``, the operator reads the models that are sent out; ``sealed``, only clients, and one who
            measures them, do.
        patience: seconds without an answer after which the aggregator, or a client's guest, counts as lost.
        tcb_floor: of the processor's firmware, that clients demand: ``advisory``, or ``none``.
    """

    platform: Literal["software", "sev_snp"] = "software"
    least_cohort: int | None = None
    greatest_age: float = 120.0
    auditors: tuple[str, ...] = ()
    attest_clients: bool = False
    downlink: Literal["plain", "sealed"] = "plain"
    patience: float = field(default=600.0, metadata=RUNTIME)
    tcb_floor: Literal["advisory", "none"] = "advisory"
    plaintext: bool = field(default=False, init=False)
    sums_only: bool = field(default=False, init=False)
    apart: bool = field(default=True, init=False)
    grid: None = field(default=None, init=False)
    dropout: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        for digits in self.auditors:
            hexadecimal = len(digits) == 64 and set(digits) <= set("0123456789abcdef")
            require(hexadecimal, "auditors", digits, "64 hexadecimal digits, lower case")
        if self.auditors:
            # Cryptography is loaded by runs that need it.
            from privbench.defenses.tee.protocol.downlink import can_seal

            odd = [key for key in self.auditors if not can_seal(key)]
            require(not odd, "auditors", "".join(odd[:1]), "X25519 public keys that something can be sealed to")
        require(self.least_cohort is None or self.least_cohort >= 0, "least_cohort", self.least_cohort, "at least 0")
        require(self.greatest_age > 0, "greatest_age", self.greatest_age, "seconds, more than 0")
        require(self.patience > 0, "patience", self.patience, "seconds, more than 0")
        hint = "false on sev_snp: one guest has one measurement, which can't tell clients' code from the aggregator's"
        require(not self.attest_clients or self.platform == "software", "attest_clients", True, hint)

    @property
    def isolation(self) -> str:
        """What separates the parties."""
        return "same_guest" if self.platform == "sev_snp" else "same_host"

    def least(self, private: bool, sampled: bool, needed: int = 0) -> int:
        """The least cohort, for a client-level guarantee or without one, with Poisson sampling or without.

        Args:
            needed: clients whose noise the guarantee counts on in every sum.

        Raises:
            ConfigError: for one that would show the size of a cohort which the guarantee counts as hidden, or that
                lets a sum out with less noise than it counts on.
        """
        open_ended = private and sampled
        if self.least_cohort is None:
            return 0 if open_ended else max(1, needed)
        hint = "0 (or null): a guarantee by Poisson sampling needs rounds without clients to look like any other"
        require(not open_ended or self.least_cohort == 0, "defense.channel.least_cohort", self.least_cohort, hint)
        hint = f"at least {needed} (or null): so many clients' noise is counted on in every sum"
        require(open_ended or self.least_cohort >= needed, "defense.channel.least_cohort", self.least_cohort, hint)
        return self.least_cohort

    def check(self, facts: "Facts", weighting: str, plan: "Plan | None") -> None:
        value = facts.separation if facts.separation > 1 else facts.cap
        hint = f"{1 if facts.separation > 1 else 'null'}: the attested aggregator keeps nobody out who has taken part"
        require(facts.limited is None, f"federation.{facts.limited}", value, hint)

    def start(self, setup: Setup, state: ServerState) -> "AttestedSession":
        # Cryptography and the platform are loaded by runs that need them.
        from privbench.defenses.tee.protocol.session import AttestedSession

        return AttestedSession(self, setup, state)
