"""The forms that certificates come in: none of them can crash, hang or smuggle in anything."""

import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from privbench.defenses.tee import certificates, table
from privbench.defenses.tee.report import Malformed

BEGIN, END = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"


def pem(der: bytes) -> bytes:
    return certificates.load(der)[0].x509.public_bytes(Encoding.PEM)


def packed(**entries: bytes) -> bytes:
    """A certificate table."""
    offset, headers = 24 * (len(entries) + 1), b""
    for name, data in entries.items():
        guid = next(g for g, n in table.GUIDS.items() if n == name)
        headers += guid.bytes + struct.pack("<II", offset, len(data))
        offset += len(data)
    return headers + bytes(24) + b"".join(entries.values())


def test_every_form_gives_the_same_certificates(forge: Callable[..., Any]):
    leaf, ask, ark = forge().chain()
    forms = (
        pem(leaf) + pem(ask) + pem(ark),
        (pem(leaf) + pem(ask) + pem(ark)).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbfsubject=CN = SEV-VCEK\n" + pem(leaf) + b"\xff\n" + pem(ask) + pem(ark),
        packed(VCEK=leaf, ASK=ask, ARK=ark, CRL=b"not looked at"),
        packed(ARK=pem(ark), VCEK=pem(leaf), ASK=pem(ask) + b"\0") + bytes(4096),
        packed(VCEK=leaf, ASK=pem(ask) + pem(ark)),
    )
    for form in forms:
        assert {c.der for c in certificates.load(form)} == {leaf, ask, ark}


def test_a_table_in_a_table_is_refused(forge: Callable[..., Any]):
    nested = packed(VCEK=forge().chain()[0])
    for _ in range(3000):
        nested = packed(VCEK=nested)
    with pytest.raises(Malformed, match="neither"):
        certificates.load(nested)


def test_a_host_that_fills_in_no_certificates_gives_none():
    assert certificates.load(b"") == certificates.load(bytes(4096)) == []


@pytest.mark.parametrize(
    "raw",
    [
        BEGIN * 30000,
        (BEGIN + END) * 15000,
        BEGIN + b"MIIF" * 200000,
        (BEGIN + b"MIIF\n" + END) * 10000,
        b"\x30\x82" * 500000,
        bytes(24 * 16) + b"\1" * 500000,
        b"x" * (certificates.LARGEST + 1),
    ],
)
def test_large_junk_is_refused_at_once(raw: bytes):
    start = time.perf_counter()
    with pytest.raises(Malformed):
        certificates.load(raw)
    assert time.perf_counter() - start < 2


def test_what_is_signed_are_the_bytes_as_they_came(forge: Callable[..., Any]):
    for der in forge().chain():
        (read,) = certificates.load(der)
        assert read.signed in der
        assert read.signed == read.x509.tbs_certificate_bytes


@pytest.mark.parametrize(
    ("raw", "claims"),
    [
        (BEGIN + b"MIIF", True),
        (b'{"cert": "-----BEGIN CERTIFICATE-----\\nMIIF\\n-----END CERTIFICATE-----"}', False),
        (b"A file starts with -----BEGIN CERTIFICATE-----", False),
        (b"-----BEGIN X509 CRL-----\nMIIF", False),
        (b"-----BEGIN PRIVATE KEY-----\nMIIF", False),
        (b"\x30\x82\x03\x5e\x30\x82\x01\x12\x02\x01\x01", False),
        (b"\x30\x82\x05\x43\x30\x82\x02\xf7\xa0\x03\x02\x01\x02", True),
    ],
)
def test_in_a_folder_only_certificates_are_taken_for_such(raw: bytes, claims: bool):
    assert certificates.recognised(raw) is claims


def test_a_revocation_list_or_report_in_a_folder_is_none(forge: Callable[..., Any]):
    made = forge()
    for raw in (made.crl(), made.report(), b"", bytes(1184)):
        assert not certificates.recognised(raw)
    for raw in (*made.chain(), pem(made.ark()), packed(VCEK=b"")):
        assert certificates.recognised(raw)
