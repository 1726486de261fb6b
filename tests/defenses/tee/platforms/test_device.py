"""/dev/sev-guest: its structures and its handshakes."""

import ctypes
import errno
import os
import termios
from pathlib import Path
from typing import Any

import pytest

from privbench.defenses.tee.platforms import Unavailable, device
from privbench.defenses.tee.report import parse

ASKED = bytes(range(64))
PLAIN, EXTENDED = device.GET_REPORT, device.GET_EXT_REPORT


def codes(made: Any) -> list[int]:
    return [code for code, *_ in made.asked]


def test_structures_are_the_kernels():
    sizes = {device.Message: 32, device.ReportRequest: 96, device.ExtendedRequest: 112, device.Response: 4000}
    for structure, size in sizes.items():
        assert ctypes.sizeof(structure) == size
    offsets = [device.Message.req_data, device.Message.resp_data, device.Message.exitinfo2]
    assert [field.offset for field in offsets] == [8, 16, 24]
    assert device.ReportRequest.vmpl.offset == 64
    assert (device.ExtendedRequest.certs_address.offset, device.ExtendedRequest.certs_len.offset) == (96, 104)
    # _IOWR('S', n, struct snp_guest_request_ioctl), asm-generic/ioctl.h
    for code, number in ((PLAIN, 0), (EXTENDED, 2)):
        assert code == 3 << 30 | 32 << 16 | ord("S") << 8 | number


@pytest.mark.parametrize("vmpl", [None, 0, 2])
def test_an_extended_report(sev_guest: Any, attach: Any, guest: Any, vmpl: int | None):
    cloud = guest()
    made = sev_guest(cloud.reply)
    raw, table = device.report(attach(made), ASKED, vmpl)
    assert parse(raw).report_data == ASKED
    assert parse(raw).vmpl == (vmpl or 0)
    assert (table or b"").rstrip(b"\0") == cloud.table.rstrip(b"\0")
    # The driver takes whole pages and no more than 16 KiB.
    assert made.asked == [(EXTENDED, ASKED, vmpl or 0, 0x4000)]


def test_the_real_blobs(sev_guest: Any, attach: Any, genoa: Any):
    made = sev_guest(lambda *_: (genoa.outblob, genoa.auxblob))
    raw, table = device.report(attach(made), genoa.report_data, None)
    assert raw == genoa.outblob
    assert (table or b"")[: len(genoa.auxblob)] == genoa.auxblob
    with pytest.raises(Unavailable, match="REPORT_DATA isn't what was asked for"):
        device.report(attach(made), ASKED, None)


def test_a_host_without_certificates(sev_guest: Any, attach: Any, guest: Any):
    cloud = guest()
    cloud.table = b""
    made = sev_guest(cloud.reply)
    raw, table = device.report(attach(made), ASKED, None)
    assert (parse(raw).report_data, table) == (ASKED, None)


def test_a_driver_without_extended_reports(sev_guest: Any, attach: Any, guest: Any):
    made = sev_guest(guest().reply, extended=False)
    raw, table = device.report(attach(made), ASKED, 1)
    assert (parse(raw).report_data, parse(raw).vmpl, table) == (ASKED, 1, None)
    assert codes(made) == [EXTENDED, PLAIN]


def test_a_larger_table(sev_guest: Any, attach: Any, guest: Any):
    cloud = guest()
    cloud.table += b"x" * 0x8000
    made = sev_guest(cloud.reply)
    _, table = device.report(attach(made), ASKED, None)
    assert (table or b"").rstrip(b"\0") == cloud.table
    assert [room for *_, room in made.asked] == [0x4000, -(-len(cloud.table) // 4096) * 4096]


@pytest.mark.parametrize("size", [1 << 20 | 1, 1 << 28])
def test_a_table_without_bounds_isnt_asked_for(sev_guest: Any, attach: Any, guest: Any, size: int):
    cloud = guest()
    cloud.table = b"x" * size
    made = sev_guest(cloud.reply)
    _, table = device.report(attach(made), ASKED, None)
    assert table is None
    assert codes(made) == [EXTENDED, PLAIN]


def test_a_host_that_never_has_enough(sev_guest: Any, attach: Any, guest: Any):
    cloud = guest()

    def growing(inblob: bytes, level: int) -> tuple[bytes, bytes]:
        cloud.table += bytes(0x5000)
        return cloud.reply(inblob, level)

    made = sev_guest(growing)
    assert device.report(attach(made), ASKED, None)[1] is None
    assert codes(made) == [EXTENDED] * 3 + [PLAIN]
    # One that asks for what it was given.
    made = sev_guest(guest().reply, script=[(errno.EIO, device.INVALID_LEN)])
    assert device.report(attach(made), ASKED, None)[1] is None
    assert codes(made) == [EXTENDED, PLAIN]


def test_throttling_is_waited_for(sev_guest: Any, attach: Any, guest: Any):
    busy = (errno.EAGAIN, device.BUSY)
    made = sev_guest(guest().reply, script=[busy, busy])
    assert device.report(attach(made), ASKED, None)[1]
    assert made.slept == [device.WAIT] * 2
    made = sev_guest(guest().reply, script=[busy] * 99)
    with pytest.raises(Unavailable, match="the host throttles requests"):
        device.report(attach(made), ASKED, None)
    assert sum(made.slept) <= 2 * device.TRIES * device.WAIT


@pytest.mark.parametrize(("status", "named"), [(0x16, r"0x16 \(invalid parameter\)"), (0x27, "0x27"), (7, "0x7")])
def test_the_firmwares_status(sev_guest: Any, attach: Any, guest: Any, status: int, named: str):
    made = sev_guest(guest().reply, status=status)
    with pytest.raises(Unavailable, match=f"extended request: the firmware's status is {named}.*, plain request: "):
        device.report(attach(made), ASKED, None)


@pytest.mark.parametrize("size", [0, 1183, 1185, 0xFFFFFFFF])
def test_the_firmwares_size(sev_guest: Any, attach: Any, guest: Any, size: int):
    made = sev_guest(guest().reply, size=size)
    with pytest.raises(Unavailable, match=f"report has {size} bytes, not 1184"):
        device.report(attach(made), ASKED, None)


def test_errors_are_named(sev_guest: Any, attach: Any, guest: Any):
    made = sev_guest(guest().reply, script=[(errno.EIO, 0, 0x16), errno.ENOTTY])
    with pytest.raises(Unavailable) as caught:
        device.report(attach(made), ASKED, None)
    assert str(caught.value) == (
        "extended request: Input/output error (host error 0x0, firmware error 0x16), "
        "plain request: Inappropriate ioctl for device (host error 0x0, firmware error 0x0)"
    )


def test_a_firmware_error_without_an_errno(monkeypatch: pytest.MonkeyPatch, sev_guest: Any, attach: Any, guest: Any):
    path = attach(sev_guest(guest().reply))

    def ioctl(_: int, __: int, message: Any) -> int:
        message.exitinfo2 = 3
        return 0

    monkeypatch.setattr(device, "ioctl", ioctl)
    with pytest.raises(Unavailable, match=r"refused \(host error 0x0, firmware error 0x3\)"):
        device.report(path, ASKED, None)


def test_the_kernel_writes_into_the_message():
    reading, writing = os.pipe()
    try:
        os.write(writing, b"three")
        message = device.Message(exitinfo2=7)
        device.ioctl(reading, termios.FIONREAD, message)
        assert (message.msg_version, message.exitinfo2) == (5, 7)
    finally:
        os.close(reading)
        os.close(writing)


def test_devices_that_arent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(Unavailable, match=r"^no such device$"):
        device.report(tmp_path / "none", ASKED, None)
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="Inappropriate ioctl for device"):
        device.report(tmp_path / "file", ASKED, None)

    def shut(*_: Any) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(device.os, "open", shut)
    with pytest.raises(Unavailable, match=r"^Permission denied$"):
        device.report(tmp_path / "file", ASKED, None)
