"""A file is found in its places, verified, fetched whole or not at all."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.tasks.sources import files
from privbench.benchmarks.tasks.sources.files import DataMissing, find, verify_arrays

CONTENT = b"the published bytes"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    monkeypatch.setenv("PRIVBENCH_DATA", str(tmp_path / "environment"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {"data_dir": tmp_path / "own", "env": tmp_path / "environment", "cache": tmp_path / "cache" / "privbench"}


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("checksum", [MD5, SHA256])
@pytest.mark.parametrize("folder", ["toy", "."])
def test_places_are_tried_in_order(places, folder, checksum):
    for place in ("cache", "env", "data_dir"):
        path = put(places[place] / folder / "a.bin")
        assert find("toy", "a.bin", checksum, str(places["data_dir"])).samefile(path)


def test_further_folders(places):
    path = put(places["env"] / "TOY" / "raw" / "a.bin")
    assert find("toy", "a.bin", SHA256, folders=("TOY/raw",)) == path


@pytest.mark.parametrize(("checksum", "kind"), [(MD5, "MD5"), (SHA256, "SHA-256")])
def test_a_wrong_file_is_refused(places, checksum, kind):
    path = put(places["env"] / "toy" / "a.bin", b"other bytes")
    other = hashlib.new(kind.replace("-", ""), b"other bytes").hexdigest()
    with pytest.raises(ConfigError) as error:
        find("toy", "a.bin", checksum)
    assert str(error.value) == f"data_dir={path}: a file with {kind} {checksum}, found {other}; remove it"


def test_a_file_that_changes_is_verified_again(places):
    put(places["env"] / "a.bin")
    find("toy", "a.bin", SHA256)
    put(places["env"] / "a.bin", b"other bytes")
    with pytest.raises(ConfigError, match="found"):
        find("toy", "a.bin", SHA256)


def test_a_missing_file_is_one_line(places):
    with pytest.raises(DataMissing) as error:
        find("toy", "a.bin", SHA256, "/nowhere", hint="ask its owner")
    assert isinstance(error.value, ConfigError)
    assert str(error.value) == (
        f"data_dir=/nowhere: a.bin (SHA-256 {SHA256}) is in none of /nowhere, {places['env']}, {places['cache']}, "
        "nor in a folder toy there; to get it: ask its owner"
    )


def test_a_download_goes_to_the_cache_or_data_dir(places, tmp_path):
    url = put(tmp_path / "server" / "a.bin").as_uri()
    assert find("toy", "a.bin", MD5, urls=["file:///not/there", url]) == places["cache"] / "toy" / "a.bin"
    assert find("other", "a.bin", MD5, str(places["data_dir"]), urls=[url]) == places["data_dir"] / "other" / "a.bin"


def test_a_wrong_download_leaves_nothing(places, tmp_path):
    url = put(tmp_path / "server" / "a.bin", CONTENT[:-1]).as_uri()
    with pytest.raises(DataMissing, match=r"to get it: download file://.*a\.bin \(MD5 "):
        find("toy", "a.bin", MD5, urls=[url])
    assert [p for p in places["cache"].rglob("*") if p.is_file()] == []


def test_a_download_that_breaks_off_leaves_nothing(places, tmp_path, monkeypatch):
    url = put(tmp_path / "server" / "a.bin").as_uri()

    def broken(source, target):
        target.write(source.read(3))
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(files.shutil, "copyfileobj", broken)
    with pytest.raises(DataMissing, match="reset by peer"):
        find("toy", "a.bin", MD5, urls=[url])
    assert [p for p in places["cache"].rglob("*") if p.is_file()] == []


def test_arrays_of_other_packages_are_verified():
    array = np.arange(6, dtype=np.uint8)
    verify_arrays("a package", hashlib.sha256(bytes(range(6))).hexdigest(), array[:2], array[2:])
    with pytest.raises(ConfigError, match="a package"):
        verify_arrays("a package", "0" * 64, array)
