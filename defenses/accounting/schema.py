"""The JSON schema of a privacy statement (draft 2020-12)."""

from typing import Any

from privbench.defenses.accounting.statement import SCHEMA
from privbench.defenses.accounting.wording import BUFFERS, DEFINITION, DRAWN_BY, NONFINITE

_RATE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_NOISE = {"type": "number", "minimum": 0}
_COUNT = {"type": "integer", "minimum": 0}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_EPSILON = {"type": ["number", "null"], "minimum": 0}
_SOURCE = {"enum": ["seeded", "system"]}
_TEXT = {"type": "string", "minLength": 1}


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
        "clip": {"type": "number", "exclusiveMinimum": 0},
        "noise_source": _SOURCE,
        "simulated": {"type": "boolean"},
        "accountant": _TEXT,
        "history": {
            "type": "array",
            "items": {"type": "array", "prefixItems": [_RATE, _NOISE, _COUNT], "items": False, "minItems": 3},
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
            "claims": {"type": "array", "items": _CLAIM, "minItems": 1},
            "mechanism": _object(
                {
                    "noise": _TEXT,
                    "added": _TEXT,
                    "noise_source": _SOURCE,
                    "clip": {"type": "number", "exclusiveMinimum": 0},
                    "scope": _TEXT,
                    "buffers": {"const": BUFFERS},
                    "nonfinite": {"const": NONFINITE},
                    "weights": _TEXT,
                    "normaliser": {"anyOf": [_TEXT, {"type": "number", "exclusiveMinimum": 0}]},
                    "local": {
                        "anyOf": [
                            _object(
                                {
                                    "sampling_rate": _RATE,
                                    "noise_multiplier": _NOISE,
                                    "steps": {"type": "integer", "minimum": 1},
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
                    "most_participations": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
                    "least_separation": {"type": "integer", "minimum": 1},
                    "population": {"type": "integer", "minimum": 1},
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
                                "first": {"type": "integer", "minimum": 1},
                                "last": {"type": "integer", "minimum": 1},
                                "charges": {"type": "integer", "minimum": 1},
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
