"""The verdict on a report, from its bytes, its certificates and a policy."""

from collections.abc import Iterable
from datetime import datetime

from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee import software
from privbench.defenses.tee.certificates import Certificate, Leaf
from privbench.defenses.tee.demands import demands, levels
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.product import COMPONENTS, SOFTWARE, of_cpu, of_name, tcb
from privbench.defenses.tee.report import Malformed, Report, parse, violations
from privbench.defenses.tee.revocation import load as load_crl
from privbench.defenses.tee.revocation import revocation
from privbench.defenses.tee.verdict import Verdict


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
    try:
        read = parse(bytes(report))
    except Malformed as error:
        verdict = Verdict(custom=root is not None)
        verdict.hold("report_format", str(error), "")
        return verdict
    try:
        found: list[chains.Chain] = chains.candidates(_pool(certificates, root), read)
        fault = None if found else "no VCEK or VLEK among those given"
    except Malformed as error:
        found, fault = [], str(error)
    refused: list[Verdict] = []
    for chain in found or [None]:
        verdict = Verdict(read, custom=root is not None)
        verdict.hold("report_format", "; ".join(violations(read)) or None, f"version {read.version}, well-formed")
        verdict.hold("certificates", fault, ", ".join(c.name for c in chain.members) if chain else "")
        if chain is not None:
            _certificates(verdict, chain, read, at, root, crl)
            _software(verdict, chain, read, policy)
            _leaf(verdict, chain.leaf, read)
        levels(verdict, read, policy)
        demands(verdict, read, policy)
        if verdict.accepted:
            return verdict
        refused.append(verdict)
    return min(refused, key=lambda v: len(v.failed))  # of several, the one that comes nearest explains most


def _pool(material: Iterable[bytes], root: Certificate | None) -> list[Certificate]:
    pool: dict[bytes, Certificate] = {} if root is None else {root.der: root}
    for raw in material:
        pool |= {c.der: c for c in certs.load(raw)}
        if len(pool) > certs.MOST:
            raise Malformed(f"more than {certs.MOST} certificates")
    return list(pool.values())


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
            fault = revocation(chain, load_crl(crl), at)
        except Malformed as error:
            fault = str(error)
        verdict.hold("revocation", fault, "the root's CRL is fresh and lists none of the chain")
    verdict.hold("report_signature", None if chain.signed else "the leaf's key did not sign this report", "ECDSA P-384")
    pinned = None if root else chains.PINS.get(digest)
    verdict.product = _product(verdict, chain.leaf, report, pinned)


def _software(verdict: Verdict, chain: chains.Chain, report: Report, policy: Policy) -> None:
    """Evidence of the software platform, or anything that resembles it, passes only as such and only where allowed."""
    marks = [*(software.marked(c.x509) for c in chain.members), *software.ids(report), verdict.product == SOFTWARE]
    if not any(marks):
        verdict.skip("software_tee", "nothing in it is of the software platform")
        return
    verdict.software = True
    fault = None if "software-tee" in policy.allow else f"{software.LABEL}: not allowed (software-tee)"
    if not all(marks) or chain.root is None:
        fault = "only a part of it is marked as the software platform's"
    verdict.hold("software_tee", fault, f"{software.LABEL}, and allowed")


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
