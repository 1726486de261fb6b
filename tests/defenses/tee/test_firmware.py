"""Images of OVMF: what is none is refused by name, and what is one is read as the library reads it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sevsnpmeasure.ovmf import OVMF

from privbench.defenses.tee import firmware as fw
from privbench.defenses.tee.report import Malformed

RESET = 0x80B004
BAD_IMAGES = {
    "0 bytes": 0,
    "100 bytes": 100,
    "8191 bytes": 8191,
    "cut short": 4096,
    "no table of GUIDs": {"footer": "00000000-0000-0000-0000-000000000007"},
    "no SEV metadata": {"offset": 0},
    "isn't within the table": {"total": 47},
    "a table of 65535 bytes": {"total": 65535},
    "comes twice": {"entries": ((fw.RESET_BLOCK, RESET), (fw.RESET_BLOCK, 1))},
    "8193 bytes before the end": {"offset": 8193},
    "doesn't begin with ASEV": {"head": (b"ASEX", 1)},
    "version 1": {"head": (b"ASEV", 2)},
    "4294967295 sections": {"count": (1 << 32) - 1},
    "8 sections": {"count": 8},
    "1 to 64 sections": {"sections": ()},
    "section 0: section_type=5": {"sections": ((0, 4096, 5),)},
    "section 0: gpa=1": {"sections": ((1, 4096, 1),)},
    "section 0: size=4294963200": {"sections": ((0, 0xFFFFF000, 1),)},
    "section 0: size=8192": {"sections": ((0, 8192, 3),)},
    "at most 268435456 bytes in all": {"sections": ((0, 128 << 20, 1),) * 3},
}


@pytest.mark.parametrize("named", BAD_IMAGES)
def test_what_is_no_ovmf_image_is_refused(named: str, ovmf_image: Any):
    made = BAD_IMAGES[named]
    with pytest.raises(Malformed) as refused:
        fw.parse(ovmf_image()[:made] if isinstance(made, int) else ovmf_image(**made))
    assert named in str(refused.value)


def test_a_huge_image_is_refused():
    with pytest.raises(Malformed, match="at most 67108864 bytes"):
        fw.parse(bytes((64 << 20) + 4096))


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.integers(0, 1100), st.integers(0, 255), max_size=4))
def test_a_damaged_image_is_refused_or_read_as_the_library_reads_it(
    changes: dict[int, int], ovmf_image: Any, tmp_path_factory: Any
):
    raw = bytearray(ovmf_image())
    for back, value in changes.items():
        raw[-1 - back] = value
    try:
        read = fw.parse(bytes(raw))
    except Malformed:
        assert changes
        return
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(raw)
    expected = OVMF(str(path))
    assert [(s.gpa, s.size, s.section_type) for s in read.sections] == [
        (s.gpa, s.size, s.section_type_int) for s in expected.metadata_items()
    ]
    for guid, word in ((fw.RESET_BLOCK, expected.sev_es_reset_eip), (fw.HASH_TABLE, expected.sev_hashes_table_gpa)):
        assert guid not in read.words or read.words[guid] == word()
