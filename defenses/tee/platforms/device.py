"""A report from ``/dev/sev-guest``, for kernels without configfs-tsm (include/uapi/linux/sev-guest.h, Linux 5.19).

The extended request also gives the host's certificate table. Where it isn't supported, the plain one gives the report.
"""

import ctypes
import errno
import os
from pathlib import Path
from time import sleep

from privbench.defenses.tee.certificates import LARGEST
from privbench.defenses.tee.platforms.platform import Unavailable
from privbench.defenses.tee.report import SIZE, parse

GET_REPORT = 0xC0205300
GET_EXT_REPORT = 0xC0205302
INVALID_LEN, BUSY = 1, 2
TRIES = 5
WAIT = 2.0
"""Seconds between two requests where the host throttles them; the driver of Linux 6.3 and later waits by itself."""

# What the kernel's own extended request offers, and the most that its driver takes.
_TABLE = 0x4000
_PAGE = 0x1000
_AT = 0x20
_libc = ctypes.CDLL(None, use_errno=True)


class ReportRequest(ctypes.Structure):
    """``struct snp_report_req``, 96 bytes."""

    _fields_ = (("user_data", ctypes.c_uint8 * 64), ("vmpl", ctypes.c_uint32), ("rsvd", ctypes.c_uint8 * 28))


class ExtendedRequest(ctypes.Structure):
    """``struct snp_ext_report_req``, 112 bytes."""

    _fields_ = (("data", ReportRequest), ("certs_address", ctypes.c_uint64), ("certs_len", ctypes.c_uint32))


class Response(ctypes.Structure):
    """``struct snp_report_resp``: what the firmware answered (AMD 56860, MSG_REPORT_RSP); the report is at 0x20."""

    _fields_ = (("data", ctypes.c_uint8 * 4000),)


class Message(ctypes.Structure):
    """``struct snp_guest_request_ioctl``, 32 bytes."""

    _fields_ = (
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("exitinfo2", ctypes.c_uint64),
    )


class _Refused(Exception):
    """A request that failed, and what kernel, host and firmware said of it."""

    def __init__(self, reason: str, host: int = 0):
        super().__init__(reason)
        self.host = host


def report(path: Path, report_data: bytes, vmpl: int | None) -> tuple[bytes, bytes | None]:
    """A report over ``report_data`` and the host's certificate table; None where the host gives none.

    Args:
        path: of the device.
        report_data: 64 bytes; REPORT_DATA of the report that is returned is exactly these.
        vmpl: the privilege level to ask for; None asks for 0.

    Raises:
        Unavailable: why there is no report.
    """
    asked = ReportRequest((ctypes.c_uint8 * 64)(*report_data), vmpl or 0)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        absent = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        raise Unavailable("no such device" if absent else error.strerror or str(error)) from None
    try:
        raw, table = _either(handle, asked)
    finally:
        os.close(handle)
    if parse(raw).report_data != report_data:
        raise Unavailable("the report's REPORT_DATA isn't what was asked for")
    return raw, table


def ioctl(handle: int, code: int, message: Message) -> None:
    """The system call by way of libc: where one fails, Python's own loses what the kernel wrote (from 3.14 on).

    Raises:
        OSError: it failed; ``message`` holds what host and firmware said.
    """
    if _libc.ioctl(ctypes.c_int(handle), ctypes.c_ulong(code), ctypes.byref(message)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _either(handle: int, asked: ReportRequest) -> tuple[bytes, bytes | None]:
    try:
        return _extended(handle, asked)
    except _Refused as error:
        first = error
    try:
        return _send(handle, GET_REPORT, asked), None
    except _Refused as error:
        raise Unavailable(f"extended request: {first}, plain request: {error}") from None


def _extended(handle: int, asked: ReportRequest) -> tuple[bytes, bytes | None]:
    size = _TABLE
    # The host can change its table between the answer and the next request, so a second one may be needed.
    for _ in range(3):
        table = (ctypes.c_uint8 * size)()
        request = ExtendedRequest(asked, ctypes.addressof(table), size)
        try:
            raw = _send(handle, GET_EXT_REPORT, request)
        except _Refused as error:
            if error.host != INVALID_LEN:
                raise
            wanted = request.certs_len
        else:
            return raw, bytes(table) if any(table) else None
        if not size < wanted <= LARGEST:
            raise _Refused(f"the host asks for {wanted} bytes for certificates after {size}, at most {LARGEST}")
        size = -(-wanted // _PAGE) * _PAGE
    raise _Refused("the host asks for more bytes for certificates each time")


def _send(handle: int, code: int, request: ctypes.Structure) -> bytes:
    """The report in the firmware's answer."""
    response = Response()
    message = Message(1, ctypes.addressof(request), ctypes.addressof(response))
    for n in range(TRIES):
        # The kernel leaves this field alone where all went well.
        message.exitinfo2 = 0
        refused = ""
        try:
            ioctl(handle, code, message)
        except OSError as error:
            refused = error.strerror or str(error)
        host, firmware = message.exitinfo2 >> 32, message.exitinfo2 & 0xFFFFFFFF
        if host != BUSY:
            break
        if n + 1 < TRIES:
            sleep(WAIT)
    if refused or host or firmware:
        said = "the host throttles requests" if host == BUSY else refused or "refused"
        raise _Refused(f"{said} (host error {host:#x}, firmware error {firmware:#x})", host)
    return _answer(bytes(response.data))


def _answer(data: bytes) -> bytes:
    status, size = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    if status:
        known = {0x16: " (invalid parameter)", 0x27: " (invalid key selection)"}.get(status, "")
        raise _Refused(f"the firmware's status is {status:#x}{known}")
    if size != SIZE:
        raise _Refused(f"the firmware's report has {size} bytes, not {SIZE}")
    return data[_AT : _AT + SIZE]
