"""Tensors from files. Nothing in a file is executed: restricted unpickling for ``.pt``, none at all for arrays."""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privbench.benchmarks.build import ConfigError, require

Content = Tensor | list[Tensor | None] | dict[str, Tensor | None]
"""What a file holds: a flat vector, tensors in some order, or tensors by name; ``None`` is a gradient never made."""


def read(path: str | Path, field: str) -> Content:
    """The tensors of a ``.pt``, ``.pth``, ``.npz``, ``.npy`` or ``.safetensors`` file, on the CPU.

    ``np.savez(FILE, a, b)`` and ``np.savez(FILE, *tensors)`` give a list, keyword arguments tensors by name.

    Args:
        field: of the user's, for messages.

    Raises:
        ConfigError: for a file that isn't there, can't be read, or holds something else than real tensors.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(field, str(path), f"a file {', '.join(_READERS)}")
    try:
        there = path.is_file()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        there = False
    require(there, field, str(path), "a file that is there")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are refused below
            found = reader(path)
    except ConfigError as error:
        raise ConfigError(field, str(path), error.expected) from None
    except Exception as error:  # readers of damaged files raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ConfigError(field, str(path), f"a readable {path.suffix} file of tensors ({reason})") from None
    return content(found, field, str(path))


def content(found: Any, field: str, shown: str) -> Content:
    """Containers of tensors or arrays, checked.

    Raises:
        ConfigError: for anything but real, dense tensors.
    """
    if isinstance(found, dict):
        if isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]
        require(bool(found), field, shown, "tensors by name, it is empty")
        require(all(isinstance(k, str) for k in found), field, shown, "names that are strings")
        return {k: _tensor(v, repr(k), field, shown) for k, v in found.items()}
    if isinstance(found, list | tuple):
        require(bool(found), field, shown, "tensors, it is an empty list")
        return [_tensor(v, str(i), field, shown) for i, v in enumerate(found)]
    one = _tensor(found, "", field, shown)
    if one is None:
        raise ConfigError(field, shown, "tensors, it holds None")
    return one


def _tensor(value: Any, name: str, field: str, shown: str) -> Tensor | None:
    if value is None:
        return None
    where = f"tensor {name}".strip() if name else "the content"
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
        except (TypeError, ValueError):
            raise ConfigError(field, shown, f"numbers, {where} is an array of {value.dtype}") from None
    if not isinstance(value, Tensor):
        raise ConfigError(field, shown, f"tensors, {where} is of type {type(value).__name__}")
    dense = value.layout is torch.strided and not value.is_quantized and not value.is_meta and not value.is_nested
    require(dense, field, shown, f"dense tensors with values, {where} isn't one")
    require(not value.is_complex(), field, shown, f"real numbers, {where} is complex")
    return value.detach()


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _npz(path: Path) -> Any:
    # Given a path, NumPy leaves a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        named = {name: held[name] for name in held.files}
    positions = [f"arr_{i}" for i in range(len(named))]
    return [named[p] for p in positions] if named and set(positions) == set(named) else named


def _npy(path: Path) -> Any:
    with path.open("rb") as file:
        found = np.load(file, allow_pickle=False)
    require(isinstance(found, np.ndarray), "file", str(path), "one array, as np.save writes it")
    return found


def _safetensors(path: Path) -> Any:
    try:
        package = importlib.import_module("safetensors.torch")
    except ImportError:
        raise ConfigError("file", str(path), "another format, or pip install safetensors to read this one") from None
    return package.load_file(str(path))


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": _torch,
    ".pth": _torch,
    ".npz": _npz,
    ".npy": _npy,
    ".safetensors": _safetensors,
}
