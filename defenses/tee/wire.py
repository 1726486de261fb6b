"""What parties that don't trust each other send: MessagePack, which can hold data alone. Never pickle."""

from typing import Any

import msgpack

from privbench.defenses.tee.report import Malformed


def pack(value: Any) -> bytes:
    """``value`` of None, booleans, integers, floats, strings, bytes, lists and dictionaries, as bytes."""
    packed = msgpack.packb(value)
    assert packed is not None
    return packed


def unpack(raw: bytes) -> dict[str, Any]:
    """The dictionary that :func:`pack` wrote.

    Raises:
        Malformed: anything else.
    """
    try:
        value = msgpack.unpackb(raw)
    except (ValueError, msgpack.UnpackException) as error:
        raise Malformed(f"message: {error or type(error).__name__}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Malformed("message: not a dictionary of names")
    return value
