"""The certificate table of an extended report (GHCB 2.03): (GUID, offset, length) entries, then the data."""

import itertools
import struct
import uuid

from privbench.defenses.tee.report import Malformed

GUIDS = {
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "VCEK",
    uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "VLEK",
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ASK",
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ARK",
    uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"): "CRL",
}
_KNOWN = {guid.bytes for guid in GUIDS}
_ENTRY = struct.Struct("<16sII")
_END = uuid.UUID(int=0)


def looks_like(raw: bytes) -> bool:
    """Whether a known GUID stands where a table has one. A table may still be malformed."""
    starts = range(0, min(len(raw), 16 * _ENTRY.size) - 15, _ENTRY.size)
    return any(raw[at : at + 16] in _KNOWN for at in starts)


def parse(raw: bytes) -> dict[str, bytes]:
    """The table's entries by name (``VCEK``, ``ASK``, ..., else the GUID).

    Raises:
        Malformed: no terminator, a GUID that comes twice, or an entry that isn't within the data.
    """
    headers: list[tuple[uuid.UUID, int, int]] = []
    for at in range(0, len(raw) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(raw, at)
        if uuid.UUID(bytes=guid) == _END:
            if offset or length:
                raise Malformed("certificate table: the terminating entry isn't zero")
            return _entries(raw, headers, at + _ENTRY.size)
        headers.append((uuid.UUID(bytes=guid), offset, length))
    raise Malformed("certificate table: no terminating entry")


def _entries(raw: bytes, headers: list[tuple[uuid.UUID, int, int]], start: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for guid, offset, length in headers:
        name = GUIDS.get(guid, str(guid))
        if name in found:
            raise Malformed(f"certificate table: {name} comes twice")
        # Python's integers don't wrap: offset + length above 2^32 is simply beyond the end.
        if offset < start or offset + length > len(raw):
            raise Malformed(f"certificate table: {name} at {offset} with {length} bytes isn't within the data")
        found[name] = raw[offset : offset + length]
    spans = sorted((o, o + n) for _, o, n in headers)
    if any(end > following for (_, end), (following, _) in itertools.pairwise(spans)):
        raise Malformed("certificate table: entries overlap")
    return found
