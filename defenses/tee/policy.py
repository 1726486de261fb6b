"""What a relying party demands of a report. It fails closed: what isn't demanded has to be waived by name.

A measurement and report data (or a nonce) are always required, or ``any``, in so many words. Debugging, migration, CXL
memory, policy bits without a known meaning and masked chip identities are refused unless ``allow`` names them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.tee.product import ADVISORY, COMPONENTS
from privbench.defenses.tee.report import PLATFORM_BITS

ANY = "any"
ALLOW = ("debug", "migration", "cxl", "unknown-policy-bits", "masked-chip-id", "software-tee")
REQUIRE = ("single-socket", "aes-256-xts", "rapl-disabled", "ciphertext-hiding", "page-swap-disabled")
LARGEST = 1 << 18
_LENGTHS = {"host_data": 32, "family_id": 16, "image_id": 16}
_LISTS = {"measurements": 48, "id_key_digests": 48, "author_key_digests": 48, "chip_ids": 64}

Floors = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Policy:
    """Requirements of one verification.

    Args:
        measurements: launch digests that are trusted, 48 bytes each; or ``any``.
        report_data: the 64 bytes that REPORT_DATA must be; or ``any``. Your challenge is part of them.
        nonce: instead of ``report_data``: 16 to 64 bytes that you chose; REPORT_DATA must be these, padded with zeros.
        vmpl: the privilege level that the report must come from, 0 to 3; None lets 0 to 3 pass.
        allow: what is tolerated, of :data:`ALLOW`.
        require: restrictions that the guest policy must have switched on, of :data:`REQUIRE`.
        platform_info: demanded states by name, such as ``{"alias-check": True, "smt": False}``.
        tcb_floor: ``advisory``, ``none``, or least security patch levels by product and component.
        guest_svn: least GUEST_SVN.
        host_data, family_id, image_id: exact values; None is no demand.
        id_key_digests, author_key_digests, chip_ids: one of these; empty is no demand.

    Raises:
        ConfigError: a field that is missing, of the wrong length or unknown.
    """

    measurements: tuple[bytes, ...] | str = ()
    report_data: bytes | str | None = None
    nonce: bytes | None = None
    vmpl: int | None = None
    allow: frozenset[str] = frozenset()
    require: frozenset[str] = frozenset()
    platform_info: Mapping[str, bool] = field(default_factory=dict)
    tcb_floor: str | Floors = "advisory"
    guest_svn: int = 0
    host_data: bytes | None = None
    family_id: bytes | None = None
    image_id: bytes | None = None
    id_key_digests: tuple[bytes, ...] = ()
    author_key_digests: tuple[bytes, ...] = ()
    chip_ids: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.measurements), "measurements", "()", f"at least one launch digest, or {ANY!r}")
        stated = self.report_data is not None or self.nonce is not None
        require(stated, "report_data", self.report_data, f"64 bytes, or a nonce, or {ANY!r}")
        require(self.report_data is None or self.nonce is None, "nonce", "given", "either report_data or a nonce")
        for name, length in {**_LISTS, **_LENGTHS, "report_data": 64}.items():
            value = getattr(self, name)
            if value == ANY and name in ("measurements", "report_data"):
                continue
            for one in value if isinstance(value, tuple) else [] if value is None else [value]:
                fits = isinstance(one, bytes) and len(one) == length
                shown = one.hex() if isinstance(one, bytes) else one
                require(fits, name, shown, f"{length} bytes, {2 * length} hexadecimal digits")
        if self.nonce is not None:
            require(16 <= len(self.nonce) <= 64, "nonce", self.nonce.hex(), "16 to 64 bytes")
        require(self.vmpl is None or 0 <= self.vmpl <= 3, "vmpl", self.vmpl, "0 to 3")
        require(self.guest_svn >= 0, "guest_svn", self.guest_svn, "0 or more")
        _known("allow", self.allow, ALLOW)
        _known("require", self.require, REQUIRE)
        _known("platform_info", self.platform_info, PLATFORM_BITS.values())
        if isinstance(self.tcb_floor, str):
            _known("tcb_floor", [self.tcb_floor], ("advisory", "none"))
        else:
            check_floors(self.tcb_floor)

    def floor(self, product: str) -> Mapping[str, int] | None:
        """Least levels on ``product``; empty for ``none``, None where no floor is stated for it."""
        if self.tcb_floor == "none":
            return {}
        floors = ADVISORY if isinstance(self.tcb_floor, str) else self.tcb_floor
        return floors.get(product)


def check_floors(floors: Floors) -> None:
    """Refuse floors of unknown products or components, and levels outside 0 to 255."""
    require(isinstance(floors, Mapping) and bool(floors), "tcb_floor", floors, "levels by product and component")
    for product, levels in floors.items():
        _known("tcb_floor", [product], COMPONENTS)
        require(isinstance(levels, Mapping) and bool(levels), f"tcb_floor.{product}", levels, "levels by component")
        _known(f"tcb_floor.{product}", levels, COMPONENTS[product])
        for name, level in levels.items():
            require(isinstance(level, int) and 0 <= level <= 255, f"tcb_floor.{product}.{name}", level, "0 to 255")


def read(path: Path) -> dict[str, Any]:
    """A policy file's fields, in the types that :class:`Policy` takes.

    Raises:
        ConfigError: not YAML, an unknown field, or a value that can't be read.
        OSError: the file can't be read.
    """
    given = _yaml(path, "policy")
    fields: dict[str, Any] = {}
    for name, value in given.items():
        require(name in Policy.__dataclass_fields__, f"policy.{name}", value, "an unknown field")
        fields[name] = _converted(name, value)
    return fields


def read_floors(path: Path) -> Floors:
    """A file of TCB floors: ``Milan: {snp: 0x18, microcode: 0xdb}``.

    Raises:
        ConfigError, OSError: as :func:`read`.
    """
    floors = _floors(_yaml(path, "tcb_floor"))
    check_floors(floors)
    return floors


def hexadecimal(name: str, text: Any) -> bytes:
    """Bytes written as hexadecimal digits."""
    try:
        return bytes.fromhex(text)
    except (ValueError, TypeError):
        raise ConfigError(name, text, "hexadecimal digits") from None


class _Loader(yaml.BaseLoader):
    """Keeps every scalar a string: a digest of digits alone is not a number. Refuses aliases and repeated names."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise yaml.YAMLError(f"a name comes twice among {', '.join(names)}")
        return super().construct_mapping(node, deep)


def _yaml(path: Path, name: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        given = yaml.load(raw.decode(), Loader=_Loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(name, str(path), f"not YAML: {' '.join(str(error).split())}") from None
    require(isinstance(given, dict), name, str(path), "a mapping of fields")
    return given


def _converted(name: str, value: Any) -> Any:
    if name in _LISTS:
        if value == ANY:
            return ANY
        # An empty list in a file would be no demand at all; whoever writes one means that nothing passes.
        require(isinstance(value, list) and bool(value), name, value, "a list of hexadecimal strings")
        return tuple(hexadecimal(name, one) for one in value)
    if name in ("allow", "require"):
        require(isinstance(value, list), name, value, "a list of names")
        require(all(isinstance(one, str) for one in value), name, value, "a list of names")
        return frozenset(value)
    if name in ("vmpl", "guest_svn"):
        return _integer(name, value)
    if name == "tcb_floor":
        return value if isinstance(value, str) else _floors(value)
    if name == "platform_info":
        require(isinstance(value, dict), name, value, "true or false by name")
        bad = {k: v for k, v in value.items() if v not in ("true", "false")}
        require(not bad, name, bad, "true or false by name")
        return {k: v == "true" for k, v in value.items()}
    return ANY if name == "report_data" and value == ANY else hexadecimal(name, value)


def _floors(value: Any) -> Floors:
    require(isinstance(value, dict), "tcb_floor", value, "levels by product and component")
    for product, levels in value.items():
        require(isinstance(levels, dict), f"tcb_floor.{product}", levels, "levels by component")
    return {p: {c: _integer(f"tcb_floor.{p}.{c}", v) for c, v in levels.items()} for p, levels in value.items()}


def _integer(name: str, value: Any) -> int:
    try:
        if len(value) > 80:  # more than 64 bits in any base; Python refuses to print much longer integers
            raise ValueError
        return int(value, 0)
    except (ValueError, TypeError):
        raise ConfigError(name, value, "an integer") from None


def _known(name: str, given: Any, known: Any) -> None:
    for one in given:
        require(one in known, name, one, f"one of {', '.join(dict.fromkeys(known))}")
