"""Rows of ``metrics.jsonl`` from values, or from the reason why there is none."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from privbench.benchmarks.federation.view import Public
from privbench.benchmarks.measures.comparison import is_image

Metric = dict[str, Any]


def missing(public: Public, context: Metric, status: str, reason: str) -> list[Metric]:
    """The measures without a value, and why."""
    names = ("psnr_db", "ssim", "mse") if is_image(public) else ("mse",)
    return [{"metric": name, **context, "value": None, "status": status, "reason": reason} for name in names]


def rows(context: Metric, values: Mapping[str, float]) -> list[Metric]:
    """One row a value."""
    return [{"metric": name, **context, **_value(value)} for name, value in values.items()]


def _value(value: float) -> Metric:
    """A value that isn't a number is none, and JSON has no NaN."""
    return {"value": value} if isfinite(value) else {"value": None, "status": "failed", "reason": f"it is {value}"}
