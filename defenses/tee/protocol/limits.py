"""What a chain of receipts cannot show, whatever its checks say, in sentences that stand below every verdict."""

from typing import TYPE_CHECKING

from privbench.defenses.tee.policy import Policy

if TYPE_CHECKING:
    from privbench.defenses.tee.protocol.audit import Audit

_ALWAYS = (
    "That this is the only chain: a host can run two aggregators under one manifest. Clients see it when they compare "
    "the newest receipts that they know.",
    "That a round was released once: a host can throw a release away after it has read it, and have the round opened "
    "again. Clients answer each attempt once, and epsilon counts every attempt.",
    "That the clients' data are what they say, or that the numbers of records with which they enrolled are true.",
    "That the clients are different people: the roster is the enrolment authority's word, and the authority's key "
    "stands in the manifest itself; compare it with one that you know.",
    "That every message arrived: what the host held back looks like a client's silence.",
    "What the measured program does: compare its measurement with one that you computed from the code.",
    "When it happened: times are the aggregator's own clock's.",
)
_STANDS = {
    "hardware": "Attacks on the processor itself, and keys revoked since: isolation is what AMD's SEV-SNP promises for "
    "these patch levels, and no revocation list was asked.",
    "custom": "That hardware stands behind it: the root is one that you named.",
    "software": "Any isolation: the software platform runs beside the host, which can read all of it, and whoever "
    "wrote the folder could have made its root.",
}


def cannot_show(audit: "Audit", policy: Policy, head: bool, every_epsilon: bool) -> list[str]:
    """The sentences for one audit, whether it was accepted or not.

    Args:
        policy: what was demanded of the reports.
        head: whether a kept head was compared.
        every_epsilon: whether each round's epsilon was recomputed.
    """
    said = [_rollback(audit, head), *_ALWAYS]
    if audit.assurance in _STANDS:
        said.append(_STANDS[audit.assurance])
    if audit.agreed and audit.agreed.manifest.platform == "sev_snp":
        said.append(
            "That operator, clients and aggregator were apart: a run on this platform has all of them in one guest, "
            "whose measurement is of all that it booted. HOST_DATA was set when that guest was launched."
        )
    if audit.agreed and audit.agreed.manifest.recipients:
        said.append(
            "Which models are meant, to who is no recipient: the downlink was sealed, and the models' digests are "
            "salted."
        )
    if audit.agreed and audit.agreed.manifest.client_measurements:
        said.append(
            "What clients ran: their evidence was sealed to the aggregator, which says how many it refused and why. It "
            "shows code and settings, not that records are true or harmless."
        )
    if policy.host_data is None:
        said.append("That the host launched it for this run: HOST_DATA was not compared, only REPORT_DATA.")
    if policy.tcb_floor == "none":
        said.append("That the firmware is patched: no floor of patch levels was demanded.")
    plan = audit.agreed.plan if audit.agreed else None
    if plan is not None:
        last = audit.rounds[-1].receipt if audit.rounds else None
        if last and any(s.get("simulated") for s in last.statements):
            said.append(
                "That epsilon holds against who knows the run's seed, from which noise or sampling are drawn "
                "(simulated: true)."
            )
        if audit.agreed and audit.agreed.manifest.facts.get("operator_reads_updates") is False:
            said.append(
                "The epsilon against the server's operator, beyond isolation: it presumes that it reads no update."
            )
        said.append("More than the plan's epsilon says: it is for the unit, the adversary and the delta beside it.")
        if not every_epsilon:
            said.append("The epsilon of rounds before the last: it was not recomputed.")
    return said


def _rollback(audit: "Audit", head: bool) -> str:
    if not head:
        return (
            "Rollback: an earlier prefix of a chain is a chain. Only who kept the newest receipt's digest, as clients "
            "do, sees that rounds were cut off."
        )
    return "That nothing came after the last round here: the head that was kept shows only what was there by then."
