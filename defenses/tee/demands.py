"""What the policy demands of a report, each demand a check of the verdict."""

from collections.abc import Sequence

from privbench.defenses.tee.policy import ANY, Policy
from privbench.defenses.tee.product import reserved, tcb
from privbench.defenses.tee.report import PLATFORM_BITS, POLICY_BITS, TCBS, Report, named
from privbench.defenses.tee.verdict import Verdict


def levels(verdict: Verdict, report: Report, policy: Policy) -> None:
    """Check the TCB versions against each other and against the policy's floor."""
    product = verdict.product
    if product is None:
        verdict.hold("tcb_order", "the product is unknown", "")
        verdict.hold("tcb_floor", "the product is unknown", "")
        return
    found = {name: tcb(getattr(report, name), product) for name in TCBS}
    committed, current = found["committed_tcb"], found["current_tcb"]
    faults = [
        f"committed {n} {committed[n]} is above current {current[n]}" for n in current if committed[n] > current[n]
    ]
    faults += [f"reserved bytes of {n} aren't zero" for n in TCBS if any(reserved(getattr(report, n), product))]
    verdict.hold("tcb_order", "; ".join(faults) or None, "COMMITTED_TCB is at most CURRENT_TCB")
    floor = policy.floor(product)
    if floor is None:
        stated = "no sourced floor is known" if policy.tcb_floor == "advisory" else "no floor is stated"
        verdict.hold("tcb_floor", f"{stated} for {product}, and none is guessed: name one, or none", "")
        return
    if policy.tcb_floor == "none":
        verdict.skip("tcb_floor", "waived by the policy")
        return
    below = [
        f"{name} {part} {found[name][part]:#x} is below {least:#x}"
        for name in ("reported_tcb", "committed_tcb", "launch_tcb")
        for part, least in floor.items()
        if found[name][part] < least
    ]
    stated = ", ".join(f"{k} at least {v:#x}" for k, v in floor.items()) or f"no advisory concerns {product}"
    verdict.hold("tcb_floor", "; ".join(below) or None, stated)


def demands(verdict: Verdict, report: Report, policy: Policy) -> None:
    """Check every other demand of the policy."""
    _listed(verdict, "measurement", report.measurement, policy.measurements)
    wanted = policy.nonce.ljust(64, b"\0") if policy.nonce is not None else policy.report_data
    _exact(verdict, "report_data" if policy.nonce is None else "nonce", report.report_data, wanted, "report_data")
    fault = f"VMPL {report.vmpl:#x}, demanded {policy.vmpl}"
    if policy.vmpl is None:
        verdict.skip("vmpl", f"no level is demanded; this is {report.vmpl:#x}")
    else:
        verdict.hold("vmpl", fault if report.vmpl != policy.vmpl else None, f"{report.vmpl}")
    fault = f"GUEST_SVN {report.guest_svn} is below {policy.guest_svn}" if report.guest_svn < policy.guest_svn else None
    verdict.hold("guest_svn", fault, f"{report.guest_svn}, at least {policy.guest_svn}")
    _guest_policy(verdict, report, policy)
    hidden = not any(report.chip_id)
    masked = "masked-chip-id" in policy.allow and report.chip_key_masked
    if not hidden:
        verdict.skip("masked_chip_id", "CHIP_ID is not zero")
    elif report.signing_key == "VLEK":
        verdict.skip("masked_chip_id", "a VLEK needs no CHIP_ID")
    else:
        fault = "CHIP_ID is zero: allowed with MASK_CHIP_KEY and a policy that allows masked-chip-id"
        verdict.hold("masked_chip_id", None if masked else fault, "masked, and allowed")
    for name, wanted in policy.platform_info.items():
        bit = next(i for i, n in PLATFORM_BITS.items() if n == name)
        is_set = bool(report.platform_info >> bit & 1)
        verdict.hold(f"platform_info.{name}", None if is_set == wanted else f"is {is_set}", f"is {is_set}")
    unknown = [n for n in named(report.platform_info, PLATFORM_BITS) if n.startswith("bit ")]
    verdict.skip(
        "platform_info", f"{report.platform_info:#x}" + (f", unknown: {', '.join(unknown)}" if unknown else "")
    )
    for name in ("host_data", "family_id", "image_id"):
        _exact(verdict, name, getattr(report, name), getattr(policy, name), name)
    for name, wanted in (("id_key_digest", policy.id_key_digests), ("author_key_digest", policy.author_key_digests)):
        _listed(verdict, name, getattr(report, name), wanted)
    _listed(verdict, "chip_ids", report.chip_id, policy.chip_ids)


def _guest_policy(verdict: Verdict, report: Report, policy: Policy) -> None:
    bits = named(report.policy >> 16 << 16 & ~(1 << 17), POLICY_BITS)
    refused = [n for n in ("debug", "migration", "cxl") if n in bits and n not in policy.allow]
    unknown = [n for n in bits if n.startswith("bit ")]
    refused += unknown if "unknown-policy-bits" not in policy.allow else []
    verdict.hold(
        "guest_policy", f"{', '.join(refused)}: not allowed" if refused else None, ", ".join(bits) or "none set"
    )
    for name in sorted(policy.require):
        verdict.hold(f"guest_policy.{name}", None if name in bits else "not required by the guest policy", "required")


def _exact(verdict: Verdict, name: str, found: bytes, wanted: bytes | str | None, shown: str) -> None:
    if wanted is None or wanted == ANY:
        verdict.skip(name, f"any {shown} passes" if wanted == ANY else "not demanded")
    else:
        verdict.hold(name, None if found == wanted else f"{found.hex()} is not what is demanded", found.hex())


def _listed(verdict: Verdict, name: str, found: bytes, wanted: Sequence[bytes] | str) -> None:
    if wanted == ANY or not wanted:
        verdict.skip(name, f"any {name} passes" if wanted == ANY else "not demanded")
    else:
        verdict.hold(name, None if found in wanted else f"{found.hex()} is not on the list", found.hex())
