"""configfs-tsm: a report over what was asked for, or why there is none; never what a race or a torn read left."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from privbench.defenses.tee.platforms import Unavailable, configfs
from privbench.defenses.tee.report import parse

ASKED = bytes(range(64))
OTHER = b"o" * 64


def ask(kernel: Any, vmpl: int | None = None, attempts: int = 3) -> tuple[bytes, bytes | None]:
    try:
        return configfs.report(kernel.folder, ASKED, vmpl, attempts, kernel)
    finally:
        assert not kernel.entries, "an entry was left behind"


def first(times: int, kind: str, name: str, action: Any) -> Any:
    """Meddle with the first ``times`` operations of this kind on this attribute."""
    left = [times]

    def meddle(done: str, which: str, entry: Any) -> None:
        if (done, which) == (kind, name) and left[0]:
            left[0] -= 1
            action(entry)

    return meddle


def raising(number: int) -> Any:
    def act(_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return act


def overwrite(entry: Any) -> None:
    entry.inblob, entry.written = OTHER, entry.written + 1


def test_a_report_over_what_was_asked(tsm: Any, guest: Any):
    made = guest()
    raw, table = ask(tsm(made.reply))
    assert parse(raw).report_data == ASKED
    assert table == made.table


def test_the_real_blobs(tsm: Any, genoa: Any):
    kernel = tsm(lambda *_: (genoa.outblob, genoa.auxblob))
    found = configfs.report(kernel.folder, genoa.report_data, None, 1, kernel)
    assert found == (genoa.outblob, genoa.auxblob)
    with pytest.raises(Unavailable, match="REPORT_DATA isn't what was written"):
        ask(kernel)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_the_privilege_level_is_asked_for(tsm: Any, guest: Any, level: int):
    assert parse(ask(tsm(guest().reply), level)[0]).vmpl == level


def test_a_level_below_the_floor_is_named(tsm: Any, guest: Any):
    with pytest.raises(Unavailable, match=r"vmpl=1: privlevel: Invalid argument, .* is 2"):
        ask(tsm(guest().reply, floor=2), 1)


@pytest.mark.parametrize("table", [b""])
def test_no_table_is_none(tsm: Any, guest: Any, table: bytes):
    made = guest()
    made.table = table
    assert ask(tsm(made.reply))[1] is None


def test_an_attribute_that_isnt_there_is_no_table(tsm: Any, guest: Any):
    kernel = tsm(guest().reply, meddle=first(9, "read", "auxblob", raising(errno.ENOENT)))
    assert ask(kernel)[1] is None
    assert len(kernel.made) == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"present": False}, "^no such folder$"),
        ({"provider": ""}, "^no provider is registered$"),
        ({"provider": "tdx_guest"}, "^the provider is 'tdx_guest', not 'sev_guest'$"),
    ],
)
def test_another_machine_is_named(tsm: Any, guest: Any, settings: dict[str, Any], named: str):
    kernel = tsm(guest().reply, **settings)
    with pytest.raises(Unavailable, match=named):
        ask(kernel)
    assert len(kernel.made) <= 1


@pytest.mark.parametrize("name", ["inblob", "provider", "generation", "outblob", "auxblob"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENXIO, errno.EINVAL])
def test_errors_are_named_and_not_tried_again(tsm: Any, guest: Any, name: str, number: int):
    kind = "write" if name == "inblob" else "read"
    kernel = tsm(guest().reply, meddle=first(1, kind, name, raising(number)))
    with pytest.raises(Unavailable, match=f"^{name}: {os.strerror(number)}$"):
        ask(kernel)
    assert len(kernel.made) == 1


def test_a_folder_one_may_not_write(monkeypatch: pytest.MonkeyPatch, tsm: Any, guest: Any):
    kernel = tsm(guest().reply)
    monkeypatch.setattr(kernel, "mkdir", raising(errno.EACCES))
    with pytest.raises(Unavailable, match=r"^mkdir: Permission denied$"):
        ask(kernel)


def vanish(kernel: Any) -> Any:
    return lambda _: kernel.entries.clear()


def torn(size: int) -> Any:
    """Cut the blob when it is read for the second time: the first reading has filled it."""

    def act(entry: Any) -> None:
        if entry.blobs:
            entry.blobs = entry.blobs[0][:size], entry.blobs[1]

    return act


DISTURBANCES = {
    "another writer before the report": ("read", "outblob", overwrite, "generation \\d after reading, 1 is due"),
    "another writer before inblob": ("write", "inblob", overwrite, "generation 2 after writing, 1 is due"),
    "another writer while reading": ("read", "auxblob", overwrite, "generation \\d after reading, 1 is due"),
    "busy": ("read", "outblob", raising(errno.EBUSY), "outblob: Device or resource busy"),
    "would block": ("read", "outblob", raising(errno.EWOULDBLOCK), "outblob: Resource temporarily unavailable"),
    "interrupted": ("read", "generation", raising(errno.EINTR), "generation: Interrupted system call"),
    "auxblob busy": ("read", "auxblob", raising(errno.EBUSY), "auxblob: Device or resource busy"),
    "inblob busy": ("write", "inblob", raising(errno.EBUSY), "inblob: Device or resource busy"),
}


@pytest.mark.parametrize("which", DISTURBANCES)
def test_disturbances_are_tried_again_with_a_fresh_entry(tsm: Any, guest: Any, which: str):
    kind, name, action, named = DISTURBANCES[which]
    made = guest()
    kernel = tsm(made.reply, meddle=first(2, kind, name, action))
    assert parse(ask(kernel)[0]).report_data == ASKED
    assert 2 <= len(set(kernel.made)) <= 3
    kernel = tsm(made.reply, meddle=first(99, kind, name, action))
    with pytest.raises(Unavailable, match=f"^3 attempts, none undisturbed: {named}"):
        ask(kernel)
    assert len(set(kernel.made)) == 3


@pytest.mark.parametrize("name", ["provider", "generation", "outblob", "auxblob"])
def test_a_vanished_entry_is_asked_for_anew(tsm: Any, guest: Any, name: str):
    kernel = tsm(guest().reply)
    kernel.meddle = first(1, "read", name, vanish(kernel))
    assert parse(ask(kernel)[0]).report_data == ASKED
    assert len(kernel.made) == 2


def test_an_entry_that_always_vanishes(tsm: Any, guest: Any):
    kernel = tsm(guest().reply)
    kernel.meddle = first(99, "write", "inblob", vanish(kernel))
    with pytest.raises(Unavailable, match="3 attempts, none undisturbed: inblob: No such file or directory"):
        ask(kernel)


def test_a_write_that_was_dropped_at_its_closing(tsm: Any, guest: Any):
    kernel = tsm(guest().reply, dropped=1)
    assert parse(ask(kernel)[0]).report_data == ASKED
    with pytest.raises(Unavailable, match="generation 0 after writing, 1 is due"):
        ask(tsm(guest().reply, dropped=9))


def test_a_short_write(monkeypatch: pytest.MonkeyPatch, tsm: Any, guest: Any):
    kernel = tsm(guest().reply)
    whole = kernel.write
    monkeypatch.setattr(kernel, "write", lambda path, raw: whole(path, raw[:63]))
    with pytest.raises(Unavailable, match="inblob: 63 of 64 bytes were taken"):
        ask(kernel)


@pytest.mark.parametrize("size", [0, 1183])
def test_a_torn_report(tsm: Any, guest: Any, size: int):
    kernel = tsm(guest().reply, meddle=first(2, "read", "outblob", torn(size)))
    assert parse(ask(kernel)[0]).report_data == ASKED
    assert len(kernel.made) == 2
    with pytest.raises(Unavailable, match="outblob changed between two reads"):
        ask(tsm(guest().reply, meddle=first(99, "read", "outblob", torn(size))))


@pytest.mark.parametrize("size", [0, 1183, 1185, 4000])
def test_a_report_of_another_size(tsm: Any, guest: Any, size: int):
    made = guest()
    kernel = tsm(lambda *given: (made.reply(*given)[0].ljust(size, b"\0")[:size], b""))
    with pytest.raises(Unavailable, match=f"outblob: a report has 1184 bytes, this has {size}"):
        ask(kernel)


def test_a_report_that_changes_between_reads(tsm: Any, guest: Any):
    made = guest()

    def renew(entry: Any) -> None:
        if entry.blobs:
            entry.blobs = made.reply(ASKED, 0)  # another signature over the same

    kernel = tsm(made.reply, meddle=first(2, "read", "outblob", renew))
    assert parse(ask(kernel)[0]).report_data == ASKED
    assert len(kernel.made) == 2


def test_a_stale_report_is_never_returned(tsm: Any, guest: Any):
    made = guest()
    kernel = tsm(lambda _, level: made.reply(OTHER, level))
    with pytest.raises(Unavailable, match="3 attempts, none undisturbed: outblob: REPORT_DATA isn't what was written"):
        ask(kernel)
    stale = [2]

    def once(inblob: bytes, level: int) -> tuple[bytes, bytes]:
        stale[0] -= 1
        return made.reply(OTHER if stale[0] >= 0 else inblob, level)

    assert parse(ask(tsm(once))[0]).report_data == ASKED


@pytest.mark.parametrize("kept", [1, 23, 95, 100, -1])
def test_a_table_that_is_cut(tsm: Any, guest: Any, kept: int):
    made = guest()
    made.table = made.table[:kept]
    with pytest.raises(Unavailable, match=r"auxblob: \d+ bytes, cut short"):
        ask(tsm(made.reply))


def test_a_malformed_table_is_the_verifiers_to_judge(tsm: Any, guest: Any):
    made = guest()
    entry = made.table[:24]
    made.table = entry + entry + bytes(24) + made.table
    assert ask(tsm(made.reply))[1] == made.table


def test_generations_are_numbers(monkeypatch: pytest.MonkeyPatch, tsm: Any, guest: Any):
    kernel = tsm(guest().reply)
    honest = kernel.read
    monkeypatch.setattr(kernel, "read", lambda path: b"-\n" if path.name == "generation" else honest(path))
    with pytest.raises(Unavailable, match=r"generation is b'-\\n', not a number"):
        ask(kernel)


def test_real_files(tmp_path: Path):
    files = configfs.Files()
    entry = tmp_path / "entry"
    files.mkdir(entry)
    # As on configfs, nothing is made by writing to it.
    with pytest.raises(FileNotFoundError):
        files.write(entry / "inblob", b"x")
    (entry / "inblob").touch()
    assert files.write(entry / "inblob", ASKED) == 64
    assert files.read(entry / "inblob") == ASKED
    (entry / "inblob").write_bytes(bytes(3 << 20))
    assert len(files.read(entry / "inblob")) == (1 << 20) + 1
    with pytest.raises(OSError, match="not empty"):
        files.rmdir(entry)
    (entry / "inblob").unlink()
    files.rmdir(entry)
    assert not entry.exists()


def test_a_folder_that_isnt_configfs(tmp_path: Path):
    with pytest.raises(Unavailable, match="provider: No such file or directory"):
        configfs.report(tmp_path, ASKED, None, 2)
    assert not any(tmp_path.iterdir())
    with pytest.raises(Unavailable, match="no such folder"):
        configfs.report(tmp_path / "none", ASKED, None, 2)
