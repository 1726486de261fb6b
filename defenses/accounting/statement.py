"""What a private run guarantees: a document that a third party recomputes without the run.

It holds digests of what only the run knows (who has how many records, how large the cohorts were); an opening of them
stays with the run.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from privbench.defenses.accounting import wording

SCHEMA = "privbench.privacy-statement/4"
_LIBRARIES = ("privbench", "dp-accounting", "opacus", "scipy", "torch")


@dataclass(frozen=True)
class Subject:
    """What a statement is about.

    Args:
        run: its id.
        code: the revision that ran.
        model: SHA-256 of the released model's float32 bytes.
        previous: SHA-256 of the statement that this one goes on from; ``None`` for a first.
    """

    run: str
    code: Mapping[str, Any]
    model: str
    previous: str | None = None


@dataclass(frozen=True)
class Documents:
    """A statement, and the opening of its digests."""

    statement: dict[str, Any]
    opening: dict[str, Any]


def document(plan: Any, ledger: Sequence[Mapping[str, Any]], cohorts: Sequence[int], subject: Subject) -> Documents:
    """The statement of a run and its opening, both ready for JSON.

    Args:
        plan: a :class:`~privbench.defenses.accounting.guarantee.Plan`.
        ledger: one entry for each attempt at a round.
        cohorts: how many clients answered, by round.
    """
    guarantee, facts = plan.guarantee, plan.facts
    by = getattr(guarantee, "noise", None)
    nonce, salt = secrets.token_hex(16), secrets.token_hex(16)
    opening = {"nonce": nonce, "salt": salt, "records": list(facts.units), "cohorts": list(cohorts)}
    record = guarantee.unit != "client"
    stated = {
        "schema": SCHEMA,
        "definition": wording.DEFINITION,
        "run": subject.run,
        "nonce": nonce,
        "previous": subject.previous,
        "model": subject.model,
        "claims": plan.statements(list(ledger)),
        "mechanism": {
            "noise": _noise(plan),
            "added": wording.WHERE[by],
            "noise_source": guarantee.noise_source,
            "operator_reads": wording.READS[facts.operator_reads_updates],
            "clip": guarantee.clip,
            "scope": wording.scope(guarantee.unit),
            "buffers": wording.BUFFERS,
            "nonfinite": wording.NONFINITE,
            "weights": wording.weights(guarantee.unit),
            "normaliser": wording.EXPECTED_BATCH if record else plan.expected,
            "local": _local(plan, ledger) if record else None,
        },
        "sampling": {
            "scheme": "poisson" if record else facts.sampling,
            "drawn_by": wording.DRAWN_BY,
            "most_participations": facts.cap,
            "least_separation": facts.separation,
            "population": sum(facts.units) if record else facts.clients,
            "population_sha256": commitment(salt, opening["records"]),
        },
        "ledger": {
            "rounds": len({e["round"] for e in ledger}),
            "charges": len(ledger),
            "entries": _grouped(ledger),
            "cohorts_sha256": commitment(salt, opening["cohorts"]),
        },
        "software": {"revision": dict(subject.code), **_versions()},
    }
    return Documents(stated, opening)


def _noise(plan: Any) -> str:
    grid, matrix = (plan.grid, plan.matrix) if plan.unit == "client" else (None, None)
    return wording.noise(None if grid is None else str(grid), len(matrix.coefficients) if matrix else 1)


def _local(plan: Any, ledger: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the client whose units are protected least."""
    (rate, sigma), steps = plan.weakest(list(ledger))
    return {"sampling_rate": rate, "noise_multiplier": sigma, "steps": steps}


def commitment(salt: str, value: Any) -> str:
    """SHA-256 of a salt and a value's canonical JSON."""
    return hashlib.sha256(f"{salt}|{json.dumps(value, separators=(',', ':'))}".encode()).hexdigest()


def _grouped(ledger: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charges that are alike, once: with the first and the last round and their number."""
    groups: list[dict[str, Any]] = []
    for entry in ledger:
        # Who took part is no business of a statement's reader.
        charge = {k: v for k, v in entry.items() if k not in ("round", "clients")}
        if groups and groups[-1]["charge"] == charge:
            groups[-1].update(last=entry["round"], charges=groups[-1]["charges"] + 1)
        else:
            groups.append({"first": entry["round"], "last": entry["round"], "charges": 1, "charge": charge})
    return groups


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
