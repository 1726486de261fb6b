"""Encrypted files: they come back as they were, or not at all."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privbench.benchmarks.build import ConfigError
from privbench.defenses.tee.encrypted import CHUNK, new_key, open_file, seal_file
from privbench.defenses.tee.protocol.manifest import Refused

HEAD, TAG = 48, 16
KEY = bytes(range(32))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain"
    path.write_bytes(bytes(range(256)) * (3 * CHUNK // 256))
    return path


@pytest.fixture
def sealed(plain: Path, tmp_path: Path) -> Path:
    seal_file(plain, tmp_path / "sealed", KEY, "data")
    return tmp_path / "sealed"


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 77])
def test_there_and_back(size: int, tmp_path: Path):
    path, back = tmp_path / "plain", tmp_path / "back"
    path.write_bytes((b"record " * (size // 7 + 1))[:size])
    seal_file(path, tmp_path / "sealed", KEY, "data")
    raw = (tmp_path / "sealed").read_bytes()
    assert len(raw) == HEAD + size + TAG * max(1, -(-size // CHUNK))
    assert b"record" not in raw
    open_file(tmp_path / "sealed", back, KEY, "data")
    assert back.read_bytes() == path.read_bytes()
    assert back.stat().st_mode & 0o077 == 0


def test_the_format_is_what_the_documentation_says(sealed: Path, plain: Path):
    """Opened with the primitives alone."""
    raw = sealed.read_bytes()
    info = b"".join(len(p).to_bytes(8, "big") + p for p in (b"privbench encrypted file 1", b"data"))
    cipher = AESGCM(HKDF(SHA256(), 32, raw[16:HEAD], info).derive(KEY))
    parts = [raw[HEAD + i * (CHUNK + TAG) : HEAD + (i + 1) * (CHUNK + TAG)] for i in range(3)]
    nonces = [i.to_bytes(11, "big") + bytes((i == 2,)) for i in range(3)]
    assert b"".join(cipher.decrypt(n, p, None) for n, p in zip(nonces, parts, strict=True)) == plain.read_bytes()


def unopenable(path: Path, key: bytes = KEY, label: str = "data") -> str:
    target = path.with_name("target")
    before = sorted(path.parent.iterdir())
    with pytest.raises(Refused) as caught:
        open_file(path, target, key, label)
    assert sorted(path.parent.iterdir()) == before  # neither a part of it, nor a temporary file
    return caught.value.name


def test_another_key_or_label(sealed: Path):
    assert unopenable(sealed, new_key()) == "unopenable"
    assert unopenable(sealed, label="model") == "unopenable"


@pytest.mark.parametrize("at", [16, 47, HEAD, HEAD + CHUNK + TAG + 9, -1])
def test_an_altered_byte(at: int, sealed: Path):
    raw = bytearray(sealed.read_bytes())
    raw[at] ^= 1
    sealed.write_bytes(raw)
    assert unopenable(sealed) == "unopenable"


def test_chunks_cut_off_added_or_moved(sealed: Path):
    raw, size = sealed.read_bytes(), CHUNK + TAG
    head, chunks = raw[:HEAD], [raw[HEAD + i * size : HEAD + (i + 1) * size] for i in range(3)]
    for order in ((0, 1), (0,), (), (0, 1, 2, 2), (1, 0, 2), (0, 2), (0, 1, 2, 0)):
        sealed.write_bytes(head + b"".join(chunks[i] for i in order))
        assert unopenable(sealed) == "unopenable", order
    for cut in (1, TAG, size - 1):
        sealed.write_bytes(raw[:-cut])
        assert unopenable(sealed) == "unopenable", cut


@pytest.mark.parametrize("raw", [b"", b"privbench file 1", b"x" * 200])
def test_other_files(raw: bytes, tmp_path: Path):
    (tmp_path / "other").write_bytes(raw)
    assert unopenable(tmp_path / "other") == "malformed_file"


def test_no_two_are_alike(plain: Path, sealed: Path, tmp_path: Path):
    seal_file(plain, tmp_path / "again", KEY, "data")
    assert (tmp_path / "again").read_bytes()[16:] != sealed.read_bytes()[16:]
    assert len(new_key()) == 32


def test_a_failure_leaves_what_was_there(plain: Path, tmp_path: Path):
    target = tmp_path / "target"
    target.write_bytes(b"before")
    with pytest.raises(ConfigError, match="key=5 bytes"):
        seal_file(plain, target, b"short", "data")
    with pytest.raises(FileNotFoundError):
        seal_file(tmp_path / "nowhere", target, KEY, "data")
    assert target.read_bytes() == b"before"
    assert {p.name for p in tmp_path.iterdir()} == {"plain", "target"}
