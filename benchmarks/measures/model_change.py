"""What a participant can see of a model that was made for it: how it differs from an honest one."""

from typing import Any

import torch
from torch import Tensor

from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.federation.view import RoundView


def distance(received: Tensor, released: Tensor) -> float:
    """``|received - released| / |released|``, >= 0; 0 for the model that everybody got."""
    return float((received - released).norm() / released.norm().clamp_min(torch.finfo(released.dtype).tiny))


def identical_rows(layout: Layout, received: Tensor, tolerance: float = 1e-6) -> float:
    """The share of the first weight's rows, in [0, 1], that another row equals up to its sign and length.

    It needs no other model to compare with. Random and trained rows have none; an imprint block has nothing else.

    Args:
        received: ``(layout.size,)``.
        tolerance: on one minus the absolute cosine.
    """
    name = next((n for n, s in zip(layout.names, layout.shapes, strict=True) if len(s) >= 2), None)
    if name is None:
        return 0.0
    rows = layout.views(received)[name].double().flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    alike = (rows @ rows.T).abs() > 1 - tolerance
    return float((alike.sum(1) > 1).double().mean())


def changes(layout: Layout, seen: RoundView, client: int) -> list[dict[str, Any]]:
    """Metric rows of a participant's view of a round: ``model_change`` and ``model_change_identical_rows``.

    Args:
        seen: a participant's; empty where it got the model that was released before.
    """
    received = seen.received.get(client)
    if received is None or seen.sent is None:
        return []
    who = {"round": seen.round, "client": client, "adversary": "participant"}
    return [
        {"metric": "model_change", **who, "value": distance(received, seen.sent)},
        {"metric": "model_change_identical_rows", **who, "value": identical_rows(layout, received)},
    ]
