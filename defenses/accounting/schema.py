"""The JSON schema of a privacy statement (draft 2020-12)."""

from typing import Any

from privbench.defenses.accounting.history import LEAST_NOISE, MOST_NOISE, MOST_STEPS
from privbench.defenses.accounting.statement import SCHEMA
from privbench.defenses.accounting.wording import BUFFERS, DEFINITION, DRAWN_BY, NONFINITE, READS

_RATE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_NOISE = {"type": "number", "anyOf": [{"const": 0}, {"minimum": LEAST_NOISE, "maximum": MOST_NOISE}]}
_COUNT = {"type": "integer", "minimum": 0, "maximum": MOST_STEPS}
_COUNT_FROM_1 = {**_COUNT, "minimum": 1}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e300}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_EPSILON = {"type": ["number", "null"], "minimum": 0, "maximum": 1e30}
_SOURCE = {"enum": ["seeded", "system"]}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 1000}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = (), more: bool = False) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": more}


_CLAIM = _object(
    {
        "unit": {"enum": ["record", "client", "patient"]},
        "adjacency": {"enum": ["add_remove", "zero_out", "replace"]},
        "adversary": _TEXT,
        "epsilon": _EPSILON,
        "rdp_epsilon": _EPSILON,
        "delta": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "clip": _POSITIVE,
        "noise_source": _SOURCE,
        "simulated": {"type": "boolean"},
        "accountant": _TEXT,
        "history": {
            "type": "array",
            "items": {"type": "array", "prefixItems": [_RATE, _NOISE, _COUNT], "items": False, "minItems": 3},
            "maxItems": 64,
        },
        "mechanism": _TEXT,
        "sampling": {"enum": ["poisson", "fixed", "none"]},
        "sampling_rate": _RATE,
        "noise_multiplier": _NOISE,
        "rounds": _COUNT,
        "why": _TEXT,
        "not_covered": _TEXT,
        "assumes": _TEXT,
        "epsilon_replace_one": _EPSILON,
        "participations_counted": _COUNT,
        "participations_realised": _COUNT,
    },
    optional=(
        "why",
        "not_covered",
        "assumes",
        "epsilon_replace_one",
        "participations_counted",
        "participations_realised",
    ),
)

_CHARGE = {
    "anyOf": [
        _object({}),
        _object({"sampling_rate": _RATE, "noise_multiplier": _NOISE}),
        _object({"noise_multiplier": _NOISE, "message_multiplier": _NOISE}),
    ]
}

STATEMENT: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "What a federated run guarantees",
    **_object(
        {
            "schema": {"const": SCHEMA},
            "definition": {"const": DEFINITION},
            "run": _TEXT,
            "nonce": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "previous": {"anyOf": [_SHA256, {"type": "null"}]},
            "model": _SHA256,
            "claims": {"type": "array", "items": _CLAIM, "minItems": 1, "maxItems": 8},
            "mechanism": _object(
                {
                    "noise": _TEXT,
                    "added": _TEXT,
                    "noise_source": _SOURCE,
                    "operator_reads": {"enum": list(READS.values())},
                    "clip": _POSITIVE,
                    "scope": _TEXT,
                    "buffers": {"const": BUFFERS},
                    "nonfinite": {"const": NONFINITE},
                    "weights": _TEXT,
                    "normaliser": {"anyOf": [_TEXT, _POSITIVE]},
                    "local": {
                        "anyOf": [
                            _object(
                                {
                                    "sampling_rate": _RATE,
                                    "noise_multiplier": _NOISE,
                                    "steps": _COUNT_FROM_1,
                                }
                            ),
                            {"type": "null"},
                        ]
                    },
                }
            ),
            "sampling": _object(
                {
                    "scheme": {"enum": ["poisson", "fixed"]},
                    "drawn_by": {"const": DRAWN_BY},
                    "most_participations": {"anyOf": [_COUNT_FROM_1, {"type": "null"}]},
                    "least_separation": _COUNT_FROM_1,
                    "population": {"type": "integer", "minimum": 1, "maximum": 10**15},
                    "population_sha256": _SHA256,
                }
            ),
            "ledger": _object(
                {
                    "rounds": _COUNT,
                    "charges": _COUNT,
                    "entries": {
                        "type": "array",
                        "items": _object(
                            {
                                "first": _COUNT_FROM_1,
                                "last": _COUNT_FROM_1,
                                "charges": _COUNT_FROM_1,
                                "charge": _CHARGE,
                            }
                        ),
                    },
                    "cohorts_sha256": _SHA256,
                }
            ),
            "software": {"type": "object"},
        }
    ),
}
