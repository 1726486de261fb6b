"""Policy files: what is ambiguous, empty or malformed is an error that names the file or the field, never a waiver."""

import time
from pathlib import Path

import pytest

from privbench.benchmarks.build import ConfigError
from privbench.defenses.tee import policy

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"measurements: []", "measurements"),
        (b"chip_ids: []", "chip_ids"),
        (b"id_key_digests: any", None),
        (b"tcb_floor: {}", None),
        (b"tcb_floor: {Milan: {}}", None),
        (b"vmpl: 1\nvmpl: 0", "policy"),
        (b"tcb_floor: {Milan: {snp: 24, snp: 0}}", "policy"),
        (b"measurements: &a [*a]", "policy"),
        (BOMB.encode() + b"vmpl: *i", "policy"),
        (b"<<: {vmpl: 1}", "policy.<<"),
        (b'vmpl: "\\U00110000"', "policy"),
        (b'vmpl: "\\UFFFFFFFF"', "policy"),
        (b"vmpl: " + b"9" * 5000, "vmpl"),
        (b"vmpl: 0x" + b"9" * 6000, "vmpl"),
        (b"vmpl: [1]", "vmpl"),
        (b"[" * 100000, "policy"),
        (b"{" * 50000, "policy"),
        (b"? {a: b}\n: c", "policy"),
        (b"? [a]\n: c", "policy"),
        (b"!!python/object:os.system x", "policy"),
        (b"--- a\n--- b", "policy"),
        (b"\xff\xfe\x00", "policy"),
        (b"\0", "policy"),
        (b"# " + b"x" * policy.LARGEST, "policy"),
        (b"platform_info: {smt: yes}", "platform_info"),
        (b"platform_info: {smt: [true]}", "platform_info"),
        (b"allow: [{debug: true}]", "allow"),
        (b"nonce: any", "nonce"),
        (b"host_data: []", "host_data"),
        (b"__class__: x", "policy.__class__"),
    ],
)
def test_malformed_policies_are_named(tmp_path: Path, text: bytes, named: str | None):
    path = tmp_path / "policy.yaml"
    path.write_bytes(text)
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        policy.Policy(**{"measurements": "any", "report_data": "any", **policy.read(path)})
    assert named in (None, caught.value.field)
    assert len(str(caught.value)) < 10000
    assert time.perf_counter() - start < 5


def test_floors_are_held_to_the_same(tmp_path: Path):
    path = tmp_path / "floors.yaml"
    path.write_text("Milan: {snp: 0x18, microcode: 219}")
    assert policy.read_floors(path) == {"Milan": {"snp": 24, "microcode": 219}}
    for text in ("", "Milan: {}", "Milan: {snp: 256}", "Milan: {snp: -1}", "Milan: {snp: [1]}", "Rome: {snp: 1}", "[]"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            policy.read_floors(path)
