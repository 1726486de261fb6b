"""From configuration to objects: ``_target_`` is resolved and checked, fields are checked against type hints.

Hydra's ``instantiate`` accepts a wrong type, and OmegaConf's structured configs refuse ``Literal``, ``Callable`` and
nested frozen dataclasses; this is the one place that turns configuration into objects.
"""

import dataclasses
import importlib
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

RUNTIME = {"identity": False}
"""``field(metadata=RUNTIME)`` marks a field that doesn't change a run's numbers: it is left out of the run's name."""


class ConfigError(ValueError):
    """Bad input: names the field, the value and what would be right.

    Args:
        field: dotted path of the field, relative to the component that checks it.
        value: the value found.
        expected: what would be right.
    """

    def __init__(self, field: str, value: Any, expected: str):
        super().__init__(field, value, expected)
        self.field, self.value, self.expected = field, value, expected

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) else repr(self.value)
        return f"{self.field}={shown}: {self.expected}"

    def under(self, prefix: str) -> "ConfigError":
        """The same error seen from a component one level up."""
        return ConfigError(".".join(p for p in (prefix, self.field) if p), self.value, self.expected)


def require(condition: bool, field: str, value: Any, expected: str) -> None:
    """Raise :class:`ConfigError` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(field, value, expected)


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
    hidden = target.startswith(f"{__name__}.") or any(part.startswith("_") for part in target.split("."))
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


def conform(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it has the type that ``hint`` asks for; lists become tuples and ints floats where it asks for them.

    NaN is no float here: no field means anything by it, and it passes every comparison's negation.

    Raises:
        ConfigError: otherwise.
    """
    found = _conform(value, hint)
    if found is not _WRONG:
        return found
    if _holds_nan(value):
        raise ConfigError(where, value, "expected a number")
    alone = not isinstance(value, list | tuple) and _conform([value], hint) is not _WRONG
    right = f"a list such as [{value}]" if alone else _describe(hint)
    raise ConfigError(where, value, f"expected {right}, got {type(value).__name__}")


_WRONG = object()


def _holds_nan(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return any(_holds_nan(v) for v in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, float) and math.isnan(value)


def _conform(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return value
    if hint is None or hint is type(None):
        return None if value is None else _WRONG
    if origin in (typing.Union, types.UnionType):
        fits = (_conform(value, a) for a in args)
        return next((f for f in fits if f is not _WRONG), _WRONG)
    if origin is Literal:
        return value if any(value == a and type(value) is type(a) for a in args) else _WRONG
    if origin is typing.Annotated:
        return _conform(value, args[0])
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and not _holds_nan(value)
        return float(value) if number else _WRONG
    if hint in (int, str, bool):
        return value if type(value) is hint else _WRONG
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _conform_sequence(value, origin, args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return _WRONG
        items = {k: _conform(v, args[1]) for k, v in value.items()}
        return _WRONG if any(v is _WRONG for v in items.values()) else items
    if origin is not None and not isinstance(origin, type):
        return value
    kind = origin or hint
    if kind is Callable or kind is getattr(typing, "Callable", None):
        return value if callable(value) else _WRONG
    if getattr(kind, "_is_protocol", False):
        # A protocol is checked by its members, data attributes included.
        return value if all(hasattr(value, m) for m in _members(kind)) else _WRONG
    if isinstance(kind, type):
        return value if isinstance(value, kind) else _WRONG
    return value


def _members(protocol: type) -> set[str]:
    """A protocol's public members (``typing.get_protocol_members`` came with Python 3.13)."""
    bases = [b for b in protocol.__mro__ if getattr(b, "_is_protocol", False) and b is not typing.Protocol]
    return {n for b in bases for n in (*vars(b), *getattr(b, "__annotations__", {})) if not n.startswith("_")}


def _conform_sequence(value: Any, origin: type, args: tuple[Any, ...]) -> Any:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        return _WRONG
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            return _WRONG
        items = [_conform(v, a) for v, a in zip(value, args, strict=True)]
    else:
        items = [_conform(v, args[0] if args else Any) for v in value]
    if any(i is _WRONG for i in items):
        return _WRONG
    return items if origin is list else tuple(items)


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in args)
    if origin is Callable:
        return "a function"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping to {_describe(args[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        several = [_describe(a) for a in args if a is not Ellipsis]
        fixed = origin is tuple and Ellipsis not in args
        return f"a list of {len(args)} ({', '.join(several)})" if fixed else f"a list of {several[0]}"
    if isinstance(hint, type) and not args:
        return hint.__name__
    return str(hint).replace("typing.", "")


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
