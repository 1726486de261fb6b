"""What a setting must be: values against type hints, and the error that names the one that isn't.

For the hints that dataclasses of this package use; OmegaConf's structured configs refuse ``Literal``, ``Callable`` and
nested frozen dataclasses.
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin


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
        return value if all(_has(value, m) for m in _members(kind)) else _WRONG
    if isinstance(kind, type):
        return value if isinstance(value, kind) else _WRONG
    return value


def _has(value: Any, member: str) -> bool:
    """Whether there is such a member; a property isn't evaluated, since that may read a data set."""
    try:
        inspect.getattr_static(value, member)
    except AttributeError:
        return hasattr(value, member)
    return True


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
