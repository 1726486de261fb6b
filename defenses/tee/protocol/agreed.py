"""What the parties of a run agreed on, as an auditor finds it: the manifest, its signatures, and its privacy plan.

Nothing in it is trusted. It may come from anybody, so nothing that it names is built but a privacy plan of ours.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privbench.benchmarks.shares import cohort_size
from privbench.defenses.tee.protocol import dsse
from privbench.defenses.tee.protocol.manifest import Manifest, Refused, check_countersignatures
from privbench.defenses.tee.protocol.receipts import central_noise, parameters
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verdict import Verdict

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Plan

PLATFORMS = ("sev_snp", "software")
_HEX = {"salt": 64, "model": 64, "schema": 64, "authority": 64, "enrolment": 128}
_HEXES = {"roster": 64, "measurements": 96, "auditors": 64, "client_measurements": 96, "recipients": 64}
_EXACT = ("delta", "adjacency", "noise_source", "simulated")
_ACCOUNTING = "privbench.defenses.accounting"
_LAST_DIGIT = 1e-4
"""Epsilons are stated rounded up to 4 digits: another version of the accountant may fall on the other side."""


@dataclass(frozen=True)
class Agreed:
    """A manifest that was read.

    Args:
        manifest, digest: with SHA-256 of its bytes.
        plan: its privacy plan, bound to its facts; None for none, and where it doesn't bind.
    """

    manifest: Manifest
    digest: bytes
    plan: "Plan | None"

    @property
    def rounds(self) -> int:
        return self.manifest.facts["rounds"]

    @property
    def bound(self) -> bool:
        """Whether what follows from the plan can be told; it can without a plan."""
        return self.manifest.privacy is None or self.plan is not None

    @property
    def expected(self) -> dict[str, Any]:
        """The fields of every receipt that follow from the manifest; empty where they can't be told."""
        return parameters(self.manifest, self.plan) if self.bound else {}

    def invited(self, number: int) -> bool:
        """Whether a cohort of ``number`` can have been drawn."""
        facts = self.manifest.facts
        if facts["sampling"] == "poisson":
            return number <= facts["clients"]
        return number == cohort_size(facts["participation"], facts["clients"])

    def misstated(self, claimed: Sequence[Mapping[str, Any]], charged: int) -> str | None:
        """Why ``claimed`` isn't what the plan guarantees after ``charged`` attempts, recomputed; None if it is."""
        if self.plan is None:
            return "statements without a privacy plan" if claimed else None
        try:
            ledger = [self.plan.charge(number, ()) for number in range(1, charged + 1)]
            ours = {(s["unit"], s["adversary"]): s for s in self.plan.statements(ledger)}
        except Exception as error:  # the manifest's numbers, whatever they are, went through numerical code
            return f"epsilon can't be recomputed: {type(error).__name__}: {error}"
        theirs = {(s["unit"], s["adversary"]): s for s in claimed}
        if set(theirs) != set(ours) or len(theirs) < len(claimed):
            return f"statements for {sorted(theirs)}, the plan makes them for {sorted(ours)}"
        for key, found in theirs.items():
            if fault := _differs(found, ours[key]):
                return f"{key[1]}: {fault}"
        return None


def near(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of a number that was calibrated elsewhere."""
    both = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
    return math.isclose(one, other, rel_tol=1e-6) if both else type(one) is type(other) and one == other


def load(path: Path, most: int = dsse.LARGEST) -> bytes:
    """A file's bytes.

    Raises:
        Malformed: it is missing, no regular file, can't be read, or has more than ``most`` bytes.
    """
    try:
        if not path.is_file():
            raise Malformed(f"{path.name} is missing")
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise Malformed(f"{path.name}: {error.strerror or error}") from None
    if len(raw) > most:
        raise Malformed(f"{path.name}: more than {most} bytes")
    return raw


def read(folder: Path, checks: Verdict) -> Agreed | None:
    """The manifest of ``folder``, None if it can't be read; ``checks`` says what is wrong with it."""
    try:
        raw = load(folder / "manifest.json")
        manifest = _manifest(raw)
    except (Malformed, Refused, ValueError, TypeError, AttributeError) as error:
        checks.hold("manifest", f"{error}", "")
        return None
    checks.hold("manifest", None, f"canonical, SHA-256 {manifest.digest.hex()}")
    try:
        manifest.check_enrolment()
        checks.hold("roster", None, f"{len(manifest.roster)} clients, signed by the authority {manifest.authority}")
    except Refused as error:
        checks.hold("roster", error.reason, "")
    try:
        check_countersignatures(manifest, _signatures(folder))
        checks.hold("countersignatures", None, "by every client of the roster")
    except (Malformed, Refused) as error:
        checks.hold("countersignatures", str(error), "")
    return Agreed(manifest, manifest.digest, _plan(manifest, checks))


def _manifest(raw: bytes) -> Manifest:
    found = dsse.canonical(raw, "manifest.json")
    if not isinstance(found, dict):
        raise Malformed("manifest.json is no object")
    manifest = Manifest.read(found)
    wrong = [n for n, size in _HEX.items() if not _is_hex(getattr(manifest, n), size)]
    wrong += [n for n, size in _HEXES.items() if not all(_is_hex(v, size) for v in getattr(manifest, n))]
    wrong += [n for n in ("roster", "measurements") if not getattr(manifest, n)]
    wrong += [n for n in ("aggregation", "release") if not _is_component(getattr(manifest, n))]
    wrong += ["platform"] if manifest.platform not in PLATFORMS else []
    wrong += ["privacy"] if manifest.privacy is not None and not _is_component(manifest.privacy) else []
    wrong += ["training"] if manifest.training is not None and not _is_training(manifest.training) else []
    wrong += ["least_cohort"] if manifest.least_cohort < 0 else []
    wrong += ["layout"] if not isinstance(manifest.layout.get("names"), list) else []
    wrong += _facts(manifest)
    if wrong:
        raise Malformed(f"manifest.json: the value of {', '.join(wrong)}")
    if manifest.canonical() != raw:
        raise Malformed("manifest.json: a field is missing")
    return manifest


def _facts(manifest: Manifest) -> list[str]:
    facts, clients = manifest.facts, len(manifest.roster)
    share, records = facts.get("participation"), facts.get("records")
    sound = {
        "rounds": type(facts.get("rounds")) is int and facts["rounds"] > 0,
        "clients": type(facts.get("clients")) is int and facts["clients"] == clients,
        "participation": isinstance(share, int | float) and 0 < share <= 1,
        "sampling": facts.get("sampling") in ("fixed", "poisson"),
        "records": isinstance(records, list) and len(records) == clients,
    }
    return [f"facts.{name}" for name, holds in sound.items() if not holds]


def _signatures(folder: Path) -> list[bytes]:
    found = dsse.parsed(load(folder / "countersignatures.json"), "countersignatures.json")
    if not isinstance(found, list) or not all(_is_hex(s, 128) for s in found):
        raise Malformed("countersignatures.json: no list of signatures in lower-case hexadecimal")
    return [bytes.fromhex(s) for s in found]


def _plan(manifest: Manifest, checks: Verdict) -> "Plan | None":
    if manifest.privacy is None:
        checks.skip("plan", "no privacy plan: no epsilon is claimed")
        return None
    try:
        plan = _bound(manifest.privacy, manifest.facts)
    except Exception as error:  # the manifest's numbers, whatever they are, go through numerical code
        checks.hold("plan", f"{type(error).__name__}: {error}", "")
        return None
    checks.hold("plan", None, f"{plan.unit} level, noise multiplier {plan.noise_multiplier:g}, clip {plan.clip:g}")
    fault = contradiction(manifest, plan)
    checks.hold("mechanism", fault, "rule and release are those that the plan counts on")
    return plan


def _bound(privacy: Mapping[str, Any], facts: Mapping[str, Any]) -> "Plan":
    # Accounting imports torch; who audits a run without a plan doesn't wait for it.
    from privbench.benchmarks.build import build

    homes = {"ClientLevel": "plan", "RecordLevel": "record_level"}
    ours = privacy["_target_"] in {f"{_ACCOUNTING}{m}.{n}" for n, home in homes.items() for m in ("", f".{home}")}
    flat = [*privacy.values(), *(v for f in facts.values() for v in (f if isinstance(f, list) else [f]))]
    if not ours or any(isinstance(v, dict | list) for v in flat):
        raise Malformed(f"{privacy['_target_']} is no privacy plan, or holds another component")
    return build(dict(privacy)).bind(build({**facts, "_target_": f"{_ACCOUNTING}.Facts"}))


def contradiction(manifest: Manifest, plan: "Plan") -> str | None:
    """Why stations, weights and cohorts don't give the plan's guarantee; None if they do (as ``Defense`` demands)."""
    from privbench.benchmarks.build import ConfigError, resolve

    unit = plan.unit
    if fault := _cohorts(manifest, plan):
        return fault
    targets = {"aggregation": manifest.aggregation["_target_"], "release": manifest.release["_target_"]}
    for station, target in targets.items():
        if not target.startswith(f"privbench.defenses.{station}."):
            return f"{target} is no {station} of this package"
    try:
        rule, release = (resolve(t) for t in targets.values())
    except ConfigError as error:
        return str(error)
    central = unit == "client" and central_noise(manifest)
    if getattr(release, "private", None) is not central:
        return f"a {unit}-level plan with {targets['release']}"
    if central and (getattr(rule, "bounded", None) is not True or manifest.aggregation.get("clip") is not None):
        return f"a client-level plan needs a rule with a proven sensitivity and no clip of its own, not {rule.__name__}"
    if (plan.count_noise > 0) is not (rule.__name__ == "AdaptiveClippedMean"):
        return f"a clip is adapted at a cost that the plan counts (adaptive), or not at all: not by {rule.__name__}"
    if manifest.training and (fault := _local(manifest.training["local"]["_target_"], unit, central)):
        return fault
    if len(manifest.layout["names"]) != manifest.layout.get("parameters"):
        return "the model has buffers, which no noise covers"
    return None


def _cohorts(manifest: Manifest, plan: "Plan") -> str | None:
    if plan.unit != "client":
        return None
    if manifest.weighting != "equal":
        return f"a client-level plan with updates weighted by {manifest.weighting}: one client moves the sum by more"
    facts, needed = manifest.facts, getattr(plan, "needed", 0)
    if manifest.least_cohort < needed:
        return f"a least cohort of {manifest.least_cohort}, the plan counts on the noise of {needed} clients in a sum"
    sampled = facts["sampling"] == "poisson" and facts["participation"] < 1
    if sampled and manifest.least_cohort > 0:
        return f"a least cohort of {manifest.least_cohort} shows what Poisson sampling is counted on to hide"
    rule = manifest.aggregation["_target_"].rpartition(".")[2]
    if not central_noise(manifest) and rule != "FixedDenominatorMean":
        return f"noise by clients needs a sum that is divided by a fixed number, not {rule}"
    return None


def _local(target: str, unit: str, central: bool) -> str | None:
    """Why the mechanism that attested clients train with doesn't give the plan's guarantee; None if it does."""
    from privbench.benchmarks.build import ConfigError, resolve

    if not target.startswith("privbench.defenses.local."):
        return f"{target} is no local mechanism of this package"
    try:
        local = resolve(target)
    except ConfigError as error:
        return str(error)
    wanted = {"private": unit != "client", "noised": unit == "client" and not central}
    if any(getattr(local, name, None) is not value for name, value in wanted.items()):
        return f"a {unit}-level plan with clients that train with {target}"
    return None


def _differs(claimed: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    for name in sorted(n for n in {*claimed, *ours} if n.startswith("epsilon")):
        one, other = claimed.get(name, "missing"), ours.get(name, "missing")
        numbers = all(type(v) in (int, float) for v in (one, other))
        # Nothing that costs something is rounded to nothing.
        close = numbers and abs(one - other) < 1.01 * _LAST_DIGIT and (one > 0) == (other > 0)
        if not (close if numbers else one == other):
            return f"{name} {_shown(one)} is stated, the plan's is {_shown(other)}"
    for name in (*_EXACT, "clip", "noise_multiplier"):
        if name in ours and not near(claimed.get(name), ours[name]):
            return f"{name} {claimed.get(name)!r} is stated, the plan's is {ours[name]!r}"
    if not _alike(claimed.get("history"), ours["history"]):
        return f"history {claimed.get('history')!r} is stated, the plan's is {ours['history']!r}"
    return None


def _alike(claimed: Any, ours: list[list[Any]]) -> bool:
    """Whether the history is the plan's, but for the last digits of its noise."""
    if not isinstance(claimed, list) or len(claimed) != len(ours):
        return False
    rows = zip(claimed, ours, strict=True)
    return all(
        isinstance(c, list) and len(c) == len(o) and all(near(a, b) for a, b in zip(c, o, strict=True)) for c, o in rows
    )


def _shown(epsilon: Any) -> str:
    return "infinite" if epsilon is None else f"{epsilon}"


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("_target_"), str)


def _is_training(value: Mapping[str, Any]) -> bool:
    known = set(value) == {"model", "inputs", "task", "work", "local"}
    return known and isinstance(value["task"], str) and all(map(_is_component, (value["model"], value["local"])))


def _is_hex(value: Any, size: int) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(f"[0-9a-f]{{{size}}}", value))
