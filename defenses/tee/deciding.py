"""Making and replaying a decision: one thread, deterministic kernels, a seeded generator, on the CPU.

Explanations are Captum's (Kokhlikyan et al. 2020): integrated gradients (Sundararajan et al. 2017) or saliency
(Simonyan et al. 2013), of the predicted class or of one that is named.
"""

import hashlib
import json
import platform as machine
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.update import Layout
from privbench.defenses.tee import decision as receipts
from privbench.defenses.tee.decision import METHODS, Decision, Value
from privbench.defenses.tee.platforms.platform import Platform
from privbench.defenses.tee.platforms.software import code
from privbench.defenses.tee.protocol.binding import transcript
from privbench.defenses.tee.report import Malformed

PROGRAM = f"{__name__}:make"
VALUES = ("input", "output", "explanation")
_STATE = b"privbench model state 1"


@dataclass(frozen=True)
class Difference:
    """What a replay found otherwise: ``model``, ``code``, ``environment``, ``input``, ``output`` or ``explanation``."""

    name: str
    reason: str


@dataclass(frozen=True)
class Made:
    """A receipt, which is public, and its opening, which isn't.

    Args:
        receipt: the signed envelope.
        opening: salts and values of input, output and explanation, JSON.
    """

    receipt: bytes
    opening: bytes


def make(
    model: nn.Module,
    factory: str,
    x: np.ndarray,
    key: Ed25519PrivateKey,
    method: str | None = "integrated_gradients",
    target: int | None = None,
    seed: int = 0,
    platform: Platform | None = None,
) -> Made:
    """Decide, explain, and sign what was decided.

    Args:
        model: takes ``x``; its output has one row a record.
        factory: ``module:function`` that makes this model.
        x: records along the first dimension; numbers become float32, integers int64.
        key: the signer's.
        method: of :data:`~privbench.defenses.tee.decision.METHODS`; None explains nothing.
        target: class to explain; None is the predicted one.
        seed: of PyTorch's generator, 0 to 2^53 - 1.
        platform: the guest that this runs in and that made ``key``: its evidence goes into the receipt.

    Raises:
        ConfigError: input, method or target that don't fit the model.
        Unavailable: the platform gives no evidence.
    """
    require(method is None or method in METHODS, "explanation", method, f"{', '.join(METHODS)} or none")
    require(0 <= seed < receipts.SEEDS, "seed", seed, "0 to 2^53 - 1")
    public = key.public_key().public_bytes_raw()
    with deterministic(seed):
        stated = _stated(model, factory, method)
        arrays = _compute(model, _array(x), method, target)
    values = {name: Value.salted(array) for name, array in arrays.items()}
    commitments: dict[str, Any] = {name: value.commitment(name) for name, value in values.items()}
    if method is not None:
        own = {"method": method, "target": "predicted" if target is None else target, **METHODS[method]}
        commitments["explanation"] = {**own, "commitment": commitments["explanation"]}
    evidence = receipts.plain_evidence(platform.evidence(receipts.report_data(public))) if platform else None
    said = {**stated, "explanation": None, **commitments, "key": public.hex(), "evidence": evidence, "seed": seed}
    receipt = receipts.sign(Decision(**said, time=datetime.now(UTC).isoformat(timespec="seconds")), key)
    opening = {"schema": 1, **{name: value.plain() for name, value in values.items()}}
    return Made(receipt, json.dumps(opening, indent=1).encode())


def replay(decision: Decision, opening: bytes, model: nn.Module, factory: str) -> list[Difference]:
    """Do it again with this model and code. An empty list says: the same to the last bit.

    Args:
        decision: verified.
        opening: as :func:`make` gives it.

    Raises:
        ConfigError: an opening that isn't one, or a model that fails on its input.
    """
    explained = decision.explanation
    values = _opened(opening, explained is not None)
    method, target = (explained["method"], explained["target"]) if explained else (None, None)
    with deterministic(decision.seed):
        here = _stated(model, factory, method)
        wanted = None if target == "predicted" else target
        arrays = _compute(model, _array(values["input"].array), method, wanted)
    found = []
    for name in ("model", "code", "environment"):
        if odd := _odd(getattr(decision, name), here[name]):
            found.append(Difference(name, "; ".join(odd)))
    for name, value in values.items():
        stated = explained["commitment"] if name == "explanation" and explained else getattr(decision, name)
        if value.commitment(name) != stated:
            found.append(Difference(name, "the opening's is not the one that was committed to"))
        elif Value(arrays[name], value.salt).commitment(name) != stated:
            found.append(Difference(name, f"the replay's is another; {_distance(value.array, arrays[name])}"))
    return found


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """One thread, deterministic algorithms and this seed; before and after, PyTorch is as it was."""
    threads = torch.get_num_threads()
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.set_num_threads(1)  # the number of threads changes the order of summation
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.set_num_threads(threads)


def state_digest(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer, sorted by name, in hexadecimal."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    parts: list[bytes] = []
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        parts += [name.encode(), str(tensor.dtype).encode(), str(tuple(tensor.shape)).encode(), raw]
    return hashlib.sha256(transcript(_STATE, *parts)).hexdigest()


def vector_digest(model: nn.Module) -> str:
    """SHA-256 of the model's flat float32 bytes, little-endian, as a round receipt has it, in hexadecimal."""
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    parts = [every[name].detach().cpu().to(torch.float32).reshape(-1) for name in Layout.of(model).names]
    flat = torch.cat(parts) if parts else torch.empty(0)
    return hashlib.sha256(flat.numpy().astype("<f4", copy=False).tobytes()).hexdigest()


def sources(model: nn.Module, factory: str) -> dict[str, str]:
    """Digests of the modules that define the factory and the classes of the model's layers.

    PyTorch's own are known by its version, the suite's by its measurement.

    Raises:
        ConfigError: a class whose module has no file.
    """
    names = {factory.partition(":")[0], *(type(m).__module__ for m in model.modules())}
    digests = {}
    for name in sorted(n for n in names if n.split(".")[0] not in ("torch", "privbench")):
        file = getattr(sys.modules.get(name), "__file__", None)
        require(file is not None, "model", factory, f"classes defined in files: {name} has none")
        digests[name] = hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()
    return digests


def environment(model: nn.Module, method: str | None) -> dict[str, str | int | bool]:
    """What else changes bits: call it inside :func:`deterministic`."""
    kinds = {str(t.dtype) for t in (*model.parameters(), *model.buffers())}
    said: dict[str, str | int | bool] = {
        "python": machine.python_version(),
        "machine": machine.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "device": "cpu",
        "dtype": ",".join(sorted(kinds)),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    return said if method is None else {**said, "captum": version("captum")}


def _stated(model: nn.Module, factory: str, method: str | None) -> dict[str, Any]:
    if method is not None:
        _captum(method)
    made = {"privbench": code.expected(PROGRAM).hex(), "factory": factory, "sources": sources(model, factory)}
    digests = {"state": state_digest(model), "vector": vector_digest(model)}
    return {"model": digests, "code": made, "environment": environment(model, method)}


def _compute(model: nn.Module, x: np.ndarray, method: str | None, target: int | None) -> dict[str, np.ndarray]:
    model.eval()
    given = torch.from_numpy(x.astype(x.dtype.newbyteorder("="), copy=True))
    try:
        with torch.no_grad():
            output = model(given.clone())
        rows = isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 0 and len(output) == len(x)
        require(rows, "model", type(model).__qualname__, "a model whose output is a tensor of floats, a row a record")
        explained = {} if method is None else {"explanation": _explain(model, given, output, method, target)}
    except ConfigError:
        raise
    except Exception as error:  # the model is the user's, and can raise anything
        raise ConfigError("input", f"array of {x.dtype} {x.shape}", f"what the model takes ({_line(error)})") from None
    return {"input": x, "output": _floats(output), **explained}


def _explain(model: nn.Module, x: Tensor, output: Tensor, method: str, target: int | None) -> np.ndarray:
    require(x.is_floating_point(), "explanation", method, "none: inputs that are integers have no gradient")
    require(output.ndim <= 2, "explanation", method, f"none: the output has {output.ndim} dimensions, at most 2")
    classes = output.shape[1] if output.ndim == 2 else 0
    fits = target is None or 0 <= target < classes
    require(fits, "target", target, f"0 to {classes - 1}" if classes else "left out: the output is one number a record")
    chosen = output.argmax(1) if target is None and classes else torch.full((len(x),), target or 0)
    own = METHODS[method]
    if method == "integrated_gradients":
        own = {"baselines": own["baseline"], "method": own["quadrature"], "n_steps": own["steps"]}
    else:
        own = {"abs": own["absolute"]}
    explain = _captum(method)(model).attribute
    return _floats(explain(x.requires_grad_(), target=chosen if classes else None, **own))


def _captum(method: str) -> Any:
    try:
        from captum.attr import IntegratedGradients, Saliency
    except ModuleNotFoundError:
        raise ConfigError("explanation", method, "none, or captum: pip install 'privbench[explain]'") from None
    return {"integrated_gradients": IntegratedGradients, "saliency": Saliency}[method]


def _array(x: np.ndarray) -> np.ndarray:
    """float32 or int64, little-endian, of finite numbers."""
    shown = f"array of {x.dtype} {x.shape}"
    require(
        x.dtype.kind in "fiu" and x.ndim > 0 and x.size > 0, "input", shown, "numbers, records along the first axis"
    )
    kind = "<f4" if x.dtype.kind == "f" else "<i8"
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(x, dtype=kind)
    require(bool(np.isfinite(made).all()), "input", shown, "finite numbers within float32")
    return made


def _floats(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    kind = "<f8" if tensor.dtype == torch.float64 else "<f4"
    return np.ascontiguousarray(tensor.to(torch.float64 if kind == "<f8" else torch.float32).numpy(), dtype=kind)


def _opened(opening: bytes, explained: bool) -> dict[str, Value]:
    wanted = VALUES if explained else VALUES[:2]
    try:
        said = json.loads(opening)
        if not isinstance(said, dict) or set(said) != {"schema", *wanted} or said["schema"] != 1:
            raise Malformed(f"not schema 1 with {', '.join(wanted)}")
        return {name: Value.read(said[name]) for name in wanted}
    except (ValueError, RecursionError) as error:
        raise ConfigError("opening", "opening.json", _line(error)) from None


def _odd(stated: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Where two mappings differ, in words."""
    names = [n for n in sorted({*stated, *here}) if stated.get(n) != here.get(n)]
    return [f"{n} {json.dumps(stated.get(n))} in the receipt, {json.dumps(here.get(n))} here" for n in names]


def _distance(one: np.ndarray, other: np.ndarray) -> str:
    if one.shape != other.shape:
        return f"its shape is {other.shape}, not {one.shape}"
    with np.errstate(invalid="ignore", over="ignore"):
        return f"largest distance {np.abs(one.astype('f8') - other.astype('f8')).max():.3g}"


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
