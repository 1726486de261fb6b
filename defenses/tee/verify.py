"""The verdict on a report: every check with pass, fail or not-applicable, and why.

A report is accepted when no check fails. ``assurance`` then says what stands behind it: ``hardware`` for AMD's pinned
root keys, ``custom`` for a root that the caller named. A refused report has ``none``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee.certificates import Certificate, Leaf
from privbench.defenses.tee.policy import ANY, Policy
from privbench.defenses.tee.product import COMPONENTS, of_cpu, of_name, reserved, tcb
from privbench.defenses.tee.report import PLATFORM_BITS, POLICY_BITS, TCBS, Malformed, Report, named, parse, violations

SCHEMA = 1
Status = Literal["pass", "fail", "not-applicable"]


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    reason: str


@dataclass
class Verdict:
    """What came out. ``report`` is None when the bytes aren't a report."""

    report: Report | None = None
    product: str | None = None
    custom: bool = False
    checks: list[Check] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        return bool(self.checks) and all(c.status != "fail" for c in self.checks)

    @property
    def assurance(self) -> str:
        if not self.accepted:
            return "none"
        return "custom" if self.custom else "hardware"

    def as_dict(self) -> dict[str, Any]:
        """The stable schema of ``privbench attest verify --json``."""
        return {
            "schema": SCHEMA,
            "verdict": "accepted" if self.accepted else "refused",
            "assurance": self.assurance,
            "product": self.product,
            "checks": [{"name": c.name, "status": c.status, "reason": c.reason} for c in self.checks],
            "report": self.report.as_dict() if self.report else None,
        }

    def hold(self, name: str, fault: str | None, reason: str) -> None:
        """Record a check: failed for ``fault``, or passed for ``reason``."""
        self.checks.append(Check(name, "fail" if fault else "pass", fault or reason))

    def skip(self, name: str, reason: str) -> None:
        self.checks.append(Check(name, "not-applicable", reason))


def verify(
    report: bytes,
    certificates: Iterable[bytes],
    policy: Policy,
    at: datetime,
    root: Certificate | None = None,
    crl: bytes | None = None,
) -> Verdict:
    """Verify a report, offline. Never raises on the bytes of its input: what is malformed is refused.

    Args:
        report: 1184 bytes.
        certificates: DER, PEM or certificate tables, in any order.
        policy: what is demanded.
        at: the time at which certificates must be valid, with its offset from UTC.
        root: trust this certificate's key instead of AMD's; the assurance is then ``custom``.
        crl: a certificate revocation list, DER or PEM.
    """
    if at.tzinfo is None:
        raise ValueError(f"at={at}: a time with its offset from UTC")
    verdict = Verdict(custom=root is not None)
    try:
        verdict.report = read = parse(bytes(report))
    except Malformed as error:
        verdict.hold("report_format", str(error), "")
        return verdict
    verdict.hold("report_format", "; ".join(violations(read)) or None, f"version {read.version}, well-formed")
    chain = _chain(verdict, read, certificates, root)
    if chain is not None:
        _certificates(verdict, chain, read, at, root, crl)
        _leaf(verdict, chain.leaf, read)
    _tcb(verdict, read, policy)
    _policy(verdict, read, policy)
    return verdict


def _chain(
    verdict: Verdict, report: Report, material: Iterable[bytes], root: Certificate | None
) -> chains.Chain | None:
    pool: dict[bytes, Certificate] = {} if root is None else {root.der: root}
    try:
        for raw in material:
            pool |= {c.der: c for c in certs.load(raw)}
        if len(pool) > certs.MOST:
            raise Malformed(f"{len(pool)} certificates: at most {certs.MOST}")
        found = chains.find(list(pool.values()), report)
    except Malformed as error:
        verdict.hold("certificates", str(error), "")
        return None
    names = ", ".join(c.name for c in found.members) if found else ""
    verdict.hold("certificates", None if found else "no VCEK or VLEK among those given", names)
    return found


def _certificates(
    verdict: Verdict, chain: chains.Chain, report: Report, at: datetime, root: Certificate | None, crl: bytes | None
) -> None:
    kind = chains.LEAVES[chain.leaf.name]
    fault = None if kind == report.signing_key else f"{chain.leaf.name!r} for SIGNING_KEY {report.signing_key}"
    verdict.hold("signing_key", fault, kind)
    verdict.hold("chain_issuers", chains.issuers(chain), "names, roles and extensions fit together")
    verdict.hold("chain_signatures", chains.signatures(chain), "RSASSA-PSS with SHA-384, to the root")
    verdict.hold("chain_validity", chains.validity(chain, at), f"valid at {at.isoformat()}")
    digest = chains.key_digest(chain.root) if chain.root else "none"
    trusted = {chains.key_digest(root): "the root that was named"} if root else chains.PINS
    fault = None if digest in trusted else f"the root key (SHA-256 {digest}) is not one that is trusted"
    verdict.hold("root_key", fault, f"{trusted.get(digest)}, SHA-256 {digest}")
    if crl is None:
        verdict.skip("revocation", "no CRL was given")
    else:
        try:
            fault = chains.revocation(chain, chains.load_crl(crl), at)
        except Malformed as error:
            fault = str(error)
        verdict.hold("revocation", fault, "the root's CRL is fresh and lists none of the chain")
    made = chains.signs(chain.leaf, report)
    verdict.hold("report_signature", None if made else "the leaf's key did not sign this report", "ECDSA P-384")
    pinned = None if root else chains.PINS.get(digest)
    verdict.product = _product(verdict, chain.leaf, report, pinned)


def _product(verdict: Verdict, leaf: Certificate, report: Report, pinned: str | None) -> str | None:
    try:
        name = certs.leaf(leaf).product
    except Malformed as error:
        verdict.hold("product", str(error), "")
        return None
    stated = of_name(name) if name else None
    fault = None if stated else f"the certificate's product, {name}, is unknown"
    if stated and pinned and stated != pinned:
        fault = f"a certificate for {stated} under the root of {pinned}"
    if stated and report.version >= 3:
        cpu = of_cpu(report.cpuid_family, report.cpuid_model)
        if cpu != stated:
            where = f"CPUID family {report.cpuid_family:#x} model {report.cpuid_model:#x}"
            fault = f"the certificate says {stated}, the report's {where} is {cpu or 'unknown'}"
    verdict.hold("product", fault, f"{name}")
    return stated


def _leaf(verdict: Verdict, certificate: Certificate, report: Report) -> None:
    try:
        leaf = certs.leaf(certificate)
    except Malformed as error:
        verdict.hold("leaf_extensions", str(error), "")
        return
    kind, product = chains.LEAVES[certificate.name], verdict.product
    if product is None:
        verdict.hold("leaf_extensions", "the product is unknown", "")
        return
    verdict.hold("leaf_extensions", _extensions(leaf, kind, product), f"structure version {leaf.structure}")
    reported = tcb(report.reported_tcb, product)
    differs = [f"{n} {reported[n]} against {leaf.spl.get(n)}" for n in reported if reported[n] != leaf.spl.get(n)]
    verdict.hold("tcb_certificate", ", ".join(differs) or None, "REPORTED_TCB is the certificate's")
    _chip(verdict, leaf, kind, product, report)


def _extensions(leaf: Leaf, kind: str, product: str) -> str | None:
    expected = 1 if product == "Turin" else 0
    missing = [n for n in COMPONENTS[product] if n not in leaf.spl]
    missing += ["structure version"] if leaf.structure is None else []
    missing += ["HWID"] if kind == "VCEK" and leaf.hwid is None else []
    missing += ["CSP id"] if kind == "VLEK" and not leaf.csp else []
    if missing:
        return f"missing: {', '.join(missing)}"
    if leaf.structure != expected:
        return f"structure version {leaf.structure}: {expected} on {product}"
    return None


def _chip(verdict: Verdict, leaf: Leaf, kind: str, product: str, report: Report) -> None:
    if kind == "VLEK":
        verdict.skip("chip_id", f"a VLEK is the cloud provider's ({leaf.csp}), not a chip's")
        return
    if not any(report.chip_id):
        verdict.skip("chip_id", "CHIP_ID is masked, see masked_chip_id")
        return
    hwid, size = leaf.hwid or b"", 8 if product == "Turin" else 64
    fits = len(hwid) == size and report.chip_id == hwid.ljust(64, b"\0")
    verdict.hold("chip_id", None if fits else f"CHIP_ID {report.chip_id.hex()} is not the certificate's", hwid.hex())


def _tcb(verdict: Verdict, report: Report, policy: Policy) -> None:
    product = verdict.product
    if product is None:
        verdict.hold("tcb_order", "the product is unknown", "")
        verdict.hold("tcb_floor", "the product is unknown", "")
        return
    levels = {name: tcb(getattr(report, name), product) for name in TCBS}
    committed, current = levels["committed_tcb"], levels["current_tcb"]
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
        f"{name} {part} {levels[name][part]:#x} is below {least:#x}"
        for name in ("reported_tcb", "committed_tcb", "launch_tcb")
        for part, least in floor.items()
        if levels[name][part] < least
    ]
    verdict.hold("tcb_floor", "; ".join(below) or None, ", ".join(f"{k} at least {v:#x}" for k, v in floor.items()))


def _policy(verdict: Verdict, report: Report, policy: Policy) -> None:
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
