"""What attestation takes: a report from the platform, and the verification of one."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps, Unavailable
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee.platforms import platform
from privbench.defenses.tee.platforms.sev_snp import SEVSNP
from privbench.defenses.tee.platforms.software.authority import Authority
from privbench.defenses.tee.platforms.software.firmware import Launched, evidence
from privbench.defenses.tee.policy import ALLOW, ANY, Policy
from privbench.defenses.tee.verify import verify

POLICY = Policy(ANY, ANY, tcb_floor="none", allow=frozenset(ALLOW))
"""Nothing that depends on the guest: the same checks run on any report."""


@dataclass(frozen=True)
class Attestation:
    """``report`` asks this SEV-SNP guest's firmware, which hosts may throttle; elsewhere it is unavailable.

    ``verify`` verifies evidence of the software platform, whose keys have the sizes of AMD's, with certificates parsed
    and their signatures checked anew; it computes alike on every machine.

    Args:
        network: may AMD's key service be asked for certificates, once, before ``report`` is timed.
    """

    network: bool = False

    def cases(self, bench: Bench) -> Iterator[Case]:
        yield Case("report", self._report, unit="reports")
        yield Case("verify", self._verify, unit="reports")

    @contextmanager
    def _report(self) -> Iterator[Steps]:
        guest = SEVSNP(network=self.network)
        try:
            guest.evidence(secrets.token_bytes(64))
        except platform.Unavailable as error:
            raise Unavailable(f"no report: {error}") from None
        yield Steps(lambda: guest.evidence(secrets.token_bytes(64)))

    @contextmanager
    def _verify(self) -> Iterator[Steps]:
        now = datetime.now(UTC)
        made = evidence(Authority(now).chip(), Launched(bytes(48)), bytes(64))
        root = certs.load(made.certificates[2])[0]

        def run() -> Any:
            return verify(made.report, made.certificates, POLICY, now, root)

        def forget() -> None:
            certs._load.cache_clear()
            chains._signed_by.cache_clear()

        forget()
        verdict = run()
        if not verdict.accepted:
            raise Unavailable(f"the evidence is refused: {', '.join(verdict.failed)}")
        yield Steps(run, before=forget)
