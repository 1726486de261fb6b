"""What the aggregator carries from round to round, as bytes with a digest: tensors, numbers, strings, containers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.wire import pack, unpack

_TENSOR = "__tensor__"


def encode(state: Mapping[str, Any]) -> bytes:
    """Bytes that are equal for equal states."""
    return pack(_plain(state))


def decode(raw: bytes) -> dict[str, Any]:
    """The inverse of :func:`encode`.

    Raises:
        Malformed: other bytes.
    """
    try:
        return _rich(unpack(raw))
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"state: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous().numpy()
        return {_TENSOR: array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise TypeError(f"state of type {type(value).__name__}")


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            array = np.frombuffer(value["data"], np.dtype(value[_TENSOR])).reshape(value["shape"])
            return torch.from_numpy(array.copy())
        return {key: _rich(v) for key, v in value.items()}
    return [_rich(v) for v in value] if isinstance(value, list) else value
