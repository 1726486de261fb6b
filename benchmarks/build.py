"""From configuration to objects: ``_target_`` is resolved and checked, fields are checked against type hints.

Hydra's ``instantiate`` accepts a wrong type, and OmegaConf's structured configs refuse ``Literal``, ``Callable`` and
nested frozen dataclasses; this is the one place that turns configuration into objects.
"""

import dataclasses
import importlib
import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from privbench.benchmarks.conform import ConfigError, conform, require
from privbench.benchmarks.conform import __name__ as CHECKS

__all__ = [
    "RUNTIME",
    "ConfigError",
    "build",
    "canonical",
    "conform",
    "describe",
    "require",
    "resolve",
    "settings",
]

RUNTIME = {"identity": False}
"""``field(metadata=RUNTIME)`` marks a field that doesn't change a run's numbers: it is left out of the run's name."""


def build(config: Any, trusted: Sequence[str] = (), path: str = "") -> Any:
    """Build what ``config`` describes, depth first.

    Args:
        config: plain containers; a mapping with ``_target_`` becomes that object, with ``_partial_: true`` a factory.
        trusted: packages besides ``privbench`` whose targets may be built.
        path: where ``config`` lies in the whole configuration, for messages.

    Raises:
        ConfigError: for an unknown target, an unknown, missing or wrongly typed field, or a value that the component
            refuses.
    """
    if isinstance(config, Mapping):
        fields = {
            k: build(v, trusted, f"{path}.{k}" if path else str(k))
            for k, v in config.items()
            if k not in ("_target_", "_partial_")
        }
        if "_target_" not in config:
            return fields
        target = resolve(config["_target_"], trusted, path)
        return _call(target, fields, path, partial=bool(config.get("_partial_", False)))
    if isinstance(config, list | tuple):
        return [build(v, trusted, f"{path}[{i}]") for i, v in enumerate(config)]
    return config


def resolve(target: Any, trusted: Sequence[str] = (), path: str = "") -> Callable[..., Any]:
    """The class or function that a ``_target_`` names.

    Raises:
        ConfigError: if it lies outside ``privbench`` and ``trusted``, or doesn't exist.
    """
    field = f"{path}._target_" if path else "_target_"
    dotted = isinstance(target, str) and "." in target
    require(dotted, field, target, "a dotted path such as privbench.attacks.leakage.dlg.DLG")
    allowed = ("privbench", *trusted)
    if not any(target.startswith(f"{package}.") for package in allowed):
        raise ConfigError(
            field, target, f"a target under {', '.join(allowed)}; add your own package with trusted_targets=[package]"
        )
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's can raise anything
        raise ConfigError(field, target, f"an importable class or function ({error})") from None
    require(callable(found), field, target, "a class or a function")
    # The builder itself, and what is private, would let a configuration name anything at all.
    hidden = target.startswith((f"{__name__}.", f"{CHECKS}.")) or any(
        part.startswith("_") for part in target.split(".")
    )
    require(not hidden, field, target, "a component, not the builder or something private")
    # What a module of ours merely imported is not ours: privbench.some.module.urlopen.
    own = not target.startswith("privbench.") or str(getattr(found, "__module__", "")).startswith("privbench.")
    require(own, field, target, "a class or a function of privbench's own")
    return found


def _call(target: Callable[..., Any], fields: dict[str, Any], path: str, partial: bool) -> Any:
    try:
        known = inspect.signature(target).parameters
    except ValueError as error:  # some built-in classes have none
        raise ConfigError(f"{path}._target_" if path else "_target_", target.__name__, str(error)) from None
    hints = _hints(target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name, value in fields.items():
        where = f"{path}.{name}" if path else name
        if name not in known and not open_ended:
            names = ", ".join(n for n in known if not n.startswith("_")) or "none"
            raise ConfigError(where, value, f"unknown field of {target.__qualname__}; it has: {names}")
        if name in hints:
            fields[name] = conform(value, hints[name], where)
    missing = [
        n
        for n, p in known.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and n not in fields
    ]
    if partial:
        return lambda *args, **more: target(*args, **{**fields, **more})
    for name in missing[:1]:
        raise ConfigError(f"{path}.{name}" if path else name, None, f"{target.__qualname__} needs a value")
    try:
        return target(**fields)
    except ConfigError as error:
        raise error.under(path) from None


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target if inspect.isfunction(target) else target.__init__)
    except (NameError, TypeError):  # a user's own, whose hints name what is imported for a type checker alone
        return {}


def settings(config: Any, trusted: Sequence[str] = ()) -> Any:
    """What of ``config`` changes a run's numbers: fields at their default and ``RUNTIME`` fields are left out.

    A new field with a default therefore renames no old run.
    """
    if isinstance(config, list | tuple):
        return [settings(v, trusted) for v in config]
    if not isinstance(config, Mapping):
        return config
    kept = {k: settings(v, trusted) for k, v in config.items()}
    if "_target_" not in config:
        return kept
    target = resolve(config["_target_"], trusted)
    if dataclasses.is_dataclass(target):
        runtime = {f.name for f in dataclasses.fields(target) if f.metadata.get("identity") is False}
    else:
        runtime = set()
    defaults = _defaults(target)
    return {k: v for k, v in kept.items() if k not in runtime and not (k in defaults and _same(v, defaults[k]))}


def _defaults(target: Callable[..., Any]) -> dict[str, Any]:
    """Default values by field; those made by a ``default_factory`` are made."""
    found = {n: p.default for n, p in inspect.signature(target).parameters.items()}
    if dataclasses.is_dataclass(target):
        fields = dataclasses.fields(target)
        found |= {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
    return found


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Mapping) and dataclasses.is_dataclass(default) and set(value) == {"_target_"}:
        # A component none of whose fields was changed: the default one, if it is of the default's class.
        ours = value["_target_"].startswith("privbench.")
        return ours and resolve(value["_target_"]) is type(default) and default == type(default)()
    if isinstance(default, tuple | list):
        return isinstance(value, tuple | list) and [*value] == [*default]
    if isinstance(value, bool) or isinstance(default, bool):
        return value is default
    return isinstance(value, int | float | str | type(None)) and value == default


def canonical(value: Any) -> str:
    """JSON with sorted keys and no white space: equal settings give equal text. ``5.0`` and ``5`` are one number."""

    def plain(v: Any) -> Any:
        if isinstance(v, Mapping):
            return {str(k): plain(w) for k, w in v.items()}
        if isinstance(v, list | tuple):
            return [plain(w) for w in v]
        return int(v) if isinstance(v, float) and v.is_integer() else v

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"))


def describe(component: Any) -> Any:
    """The configuration that :func:`build` makes ``component`` of: dataclasses become ``_target_`` and fields."""
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        kind = type(component)
        fields = {f.name: describe(getattr(component, f.name)) for f in dataclasses.fields(component) if f.init}
        return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **fields}
    if isinstance(component, list | tuple):
        return [describe(one) for one in component]
    if isinstance(component, Mapping):
        return {key: describe(one) for key, one in component.items()}
    return component
