"""The verifier: AMD's evidence holds, and nothing that is altered, forged, malformed or out of policy does."""

import random
import struct
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from privbench.benchmarks.build import ConfigError
from privbench.defenses.tee import certificates, chain, policy, report, table
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.verify import verify

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
OPEN = Policy(measurements="any", report_data="any", tcb_floor="none")


def failed(verdict: Verdict) -> set[str]:
    return {c.name for c in verdict.checks if c.status == "fail"}


def judge(made: Any, demanded: Policy = OPEN, **options: Any) -> Verdict:
    root = certificates.load(made.ark())[0]
    return verify(made.report(), made.chain(), demanded, **{"at": AT, "root": root, **options})


def test_amds_evidence_holds(case: Any):
    verdict = verify(case.report, case.certificates, OPEN, AT)
    assert (verdict.accepted, verdict.assurance) == (True, "hardware")
    assert verdict.product == case.folder.name.split("-")[0].capitalize()


def test_the_advisory_is_the_default_floor(case: Any):
    verdict = verify(case.report, case.certificates, Policy(measurements="any", report_data="any"), AT)
    # The Milan case reports SNP 0x17, below AMD-SB-3019's 0x18.
    assert failed(verdict) == ({"tcb_floor"} if verdict.product == "Milan" else set())


def test_every_altered_byte_of_a_report_is_refused(case: Any):
    for at in range(len(case.report)):
        raw = bytearray(case.report)
        raw[at] ^= 1 << random.Random(at).randrange(8)
        assert not verify(bytes(raw), case.certificates, OPEN, AT).accepted, hex(at)


def test_altered_bits_of_certificates_are_refused(case: Any):
    rng = random.Random(0)
    for which, der in enumerate(case.certificates):
        for bit in rng.sample(range(len(der) * 8), 300):
            raw = bytearray(der)
            raw[bit // 8] ^= 1 << bit % 8
            altered = [*case.certificates[:which], bytes(raw), *case.certificates[which + 1 :]]
            assert not verify(case.report, altered, OPEN, AT).accepted, (which, bit)


@pytest.mark.slow
def test_every_altered_bit_is_refused(case: Any):
    for which in range(4):
        source = [*case.certificates, case.report]
        for bit in range(len(source[which]) * 8):
            raw = bytearray(source[which])
            raw[bit // 8] ^= 1 << bit % 8
            *held, shown = [*source[:which], bytes(raw), *source[which + 1 :]]
            assert not verify(shown, held, OPEN, AT).accepted, (which, bit)


def test_certificates_come_in_any_form(case: Any):
    pem = b"".join(certificates.load(der)[0].x509.public_bytes(Encoding.PEM) for der in reversed(case.certificates))
    assert verify(case.report, [pem], OPEN, AT).accepted
    blob = case.folder / "auxblob.bin"
    if blob.exists():
        assert verify(case.report, [blob.read_bytes()], OPEN, AT).accepted


def test_amds_evidence_fails_under_another_root(case: Any, forge: Callable[..., Any]):
    root = certificates.load(forge().ark())[0]
    assert "root_key" in failed(verify(case.report, case.certificates, OPEN, AT, root))


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"version": 2},
        {"version": 4},
        {"version": 5, "fields": {0x1F8: b"\1", 0x200: b"\1"}},
        {"product": "Genoa"},
        {"product": "Genoa", "fields": {0x189: b"\xa0"}},
        {"product": "Turin", "version": 5, "fields": {0x40: b"\x40"}},
        {"kind": "VLEK"},
        {"tcb": bytes((4, 0, 0, 0, 0, 0, 0x80, 0xFF))},
        {"extensions": {"4": b"\x04\x40" + bytes(range(1, 65))}},
        {"fields": {0x40: b"\xff" * 8}},
    ],
)
def test_well_formed_evidence_under_a_named_root_is_custom(forge: Callable[..., Any], made: dict[str, Any]):
    verdict = judge(forge(**made))
    assert failed(verdict) == set()
    assert verdict.assurance == "custom"


@pytest.mark.parametrize(
    ("made", "check"),
    [
        ({"version": 1}, "report_format"),
        ({"version": 6}, "report_format"),
        ({"fields": {0x34: b"\2"}}, "report_format"),
        ({"fields": {0x30: b"\4"}}, "report_format"),
        ({"fields": {0x30: b"\xff" * 4}}, "report_format"),
        ({"fields": {0x48: b"\x08"}}, "report_format"),
        ({"fields": {0x48: b"\x1c"}}, "report_format"),
        ({"fields": {0x48: b"\x20"}}, "report_format"),
        ({"fields": {0x4C: b"\1"}}, "report_format"),
        ({"fields": {0x18B: b"\1"}}, "report_format"),
        ({"version": 2, "fields": {0x188: b"\x19"}}, "report_format"),
        ({"fields": {0x1F8: b"\1"}}, "report_format"),
        ({"version": 5, "fields": {0x208: b"\1"}}, "report_format"),
        ({"fields": {0x2D0: b"\1"}}, "report_format"),
        ({"fields": {0x32F: b"\1"}}, "report_format"),
        ({"fields": {0x330: b"\1"}}, "report_format"),
        ({"fields": {0x49F: b"\1"}}, "report_format"),
        ({"fields": {0x08: bytes(8)}}, "report_format"),
        ({"fields": {0x0A: b"\x0b"}}, "guest_policy"),
        ({"fields": {0x0A: b"\x07"}}, "guest_policy"),
        ({"fields": {0x0A: b"\x23"}}, "guest_policy"),
        ({"fields": {0x0B: b"\x04"}}, "guest_policy"),
        ({"fields": {0x48: b"\x04"}}, "signing_key"),
        ({"fields": {0x188: b"\x1a"}}, "product"),
        ({"fields": {0x189: b"\x11"}}, "product"),
        ({"fields": {0x189: b"\x20"}}, "product"),
        ({"fields": {0x186: b"\x17"}}, "tcb_certificate"),
        ({"fields": {0x1E6: b"\x19"}}, "tcb_order"),
        ({"fields": {0x3A: b"\1"}}, "tcb_order"),
        ({"fields": {0x1A0: b"\0"}}, "chip_id"),
        ({"fields": {0x1A0: bytes(64)}}, "masked_chip_id"),
        ({"fields": {0x1A0: bytes(64), 0x48: b"\2"}}, "masked_chip_id"),
        ({"product": "Turin", "fields": {0x1A8: b"\1"}}, "chip_id"),
        ({"extensions": {"3.1": None}}, "leaf_extensions"),
        ({"extensions": {"3.8": None}}, "leaf_extensions"),
        ({"product": "Turin", "extensions": {"3.9": None}}, "leaf_extensions"),
        ({"extensions": {"4": None}}, "leaf_extensions"),
        ({"extensions": {"1": None}}, "leaf_extensions"),
        ({"extensions": {"2": None}}, "product"),
        ({"extensions": {"2": b"\x16\x06Venice"}}, "product"),
        ({"extensions": {"3.3": b"\x02\x02\x00\x18"}}, "leaf_extensions"),
        ({"extensions": {"3.3": b"\x02\x01\x98"}}, "leaf_extensions"),
        ({"kind": "VLEK", "extensions": {"5": None}}, "leaf_extensions"),
        ({"structure": 1}, "leaf_extensions"),
        ({"product": "Turin", "structure": 0}, "leaf_extensions"),
        ({"critical": True}, "chain_issuers"),
        ({"ask_name": "SEV-VLEK-Milan"}, "chain_issuers"),
        ({"kind": "VLEK", "ask_name": "SEV-Milan"}, "chain_issuers"),
        ({"ask_bits": 2048}, "chain_issuers"),
        ({"leaf_name": "VCEK"}, "certificates"),
    ],
)
def test_forged_evidence_is_refused_by_name(forge: Callable[..., Any], made: dict[str, Any], check: str):
    assert check in failed(judge(forge(**made)))


def test_what_the_policy_allows_by_name_passes(forge: Callable[..., Any]):
    for name, field in (("debug", b"\x0b"), ("migration", b"\x07"), ("cxl", b"\x23")):
        made = forge(fields={0x0A: field})
        assert judge(made, Policy("any", "any", tcb_floor="none", allow=frozenset([name]))).accepted
    masked = forge(fields={0x1A0: bytes(64), 0x48: b"\2"})
    assert judge(masked, Policy("any", "any", tcb_floor="none", allow=frozenset(["masked-chip-id"]))).accepted


@pytest.mark.parametrize(
    ("demanded", "check"),
    [
        ({"measurements": (b"x" * 48,)}, "measurement"),
        ({"report_data": b"x" * 64}, "report_data"),
        ({"report_data": None, "nonce": b"n" * 32}, "nonce"),
        ({"vmpl": 1}, "vmpl"),
        ({"guest_svn": 1}, "guest_svn"),
        ({"require": frozenset(["single-socket"])}, "guest_policy.single-socket"),
        ({"platform_info": {"alias-check": True}}, "platform_info.alias-check"),
        ({"host_data": b"x" * 32}, "host_data"),
        ({"family_id": b"x" * 16}, "family_id"),
        ({"image_id": b"x" * 16}, "image_id"),
        ({"id_key_digests": (b"x" * 48,)}, "id_key_digest"),
        ({"author_key_digests": (b"x" * 48,)}, "author_key_digest"),
        ({"chip_ids": (b"x" * 64,)}, "chip_ids"),
        ({"tcb_floor": {"Milan": {"snp": 0x19}}}, "tcb_floor"),
        ({"tcb_floor": {"Genoa": {"snp": 0}}}, "tcb_floor"),
    ],
)
def test_each_demand_of_the_policy_is_checked(forge: Callable[..., Any], demanded: dict[str, Any], check: str):
    fields = {"measurements": (b"m" * 48,), "report_data": b"d" * 64, "tcb_floor": "none", **demanded}
    assert failed(judge(forge(), Policy(**fields))) == {check}


def test_no_floor_is_guessed_for_turin(forge: Callable[..., Any]):
    verdict = judge(forge(product="Turin"), Policy("any", "any"))
    assert "no sourced floor is known for Turin" in next(c.reason for c in verdict.checks if c.name == "tcb_floor")
    assert failed(verdict) == {"tcb_floor"}


def test_time_and_revocation(forge: Callable[..., Any]):
    made = forge()
    assert failed(judge(made, at=AT + timedelta(30))) == {"chain_validity"}
    assert judge(made, crl=made.crl()).accepted
    for crl in (made.crl(revoked=7), made.crl(days=-1), made.crl(signer="other"), b"no CRL"):
        assert failed(judge(made, crl=crl)) == {"revocation"}
    with pytest.raises(ValueError, match="offset from UTC"):
        judge(made, at=datetime(2026, 1, 1))


def test_a_chain_without_an_issuer_or_leaf_is_refused(forge: Callable[..., Any]):
    made = forge()
    leaf, ask, ark = made.chain()
    for held in ([leaf], [leaf, ark], [ask, ark], [], [b"junk"], [leaf[:-1], ask, ark], [leaf + b"0", ask, ark]):
        assert not verify(made.report(), held, OPEN, AT, certificates.load(made.ark())[0]).accepted
    assert not verify(made.report(), [leaf, ask, ark], OPEN, AT).accepted


def test_the_right_leaf_is_found_among_several(forge: Callable[..., Any]):
    made, other = forge(), forge(kind="VLEK")
    assert verify(made.report(), other.chain() + made.chain(), OPEN, AT, certificates.load(made.ark())[0]).accepted


def entry(name: str, offset: int, length: int) -> bytes:
    guid = next(g for g, n in table.GUIDS.items() if n == name)
    return guid.bytes + struct.pack("<II", offset, length)


@pytest.mark.parametrize(
    "raw",
    [
        entry("VCEK", 24, 4),
        entry("VCEK", 0, 4) + bytes(28),
        entry("VCEK", 0xFFFFFFF0, 0x20) + bytes(28),
        entry("VCEK", 48, 5) + bytes(28),
        entry("VCEK", 72, 2) * 2 + bytes(30),
        entry("VCEK", 72, 4) + entry("ASK", 74, 2) + bytes(28),
        entry("VCEK", 48, 4) + uuid.UUID(int=0).bytes + b"\1" + bytes(11),
    ],
)
def test_malformed_tables_are_refused(raw: bytes):
    with pytest.raises(report.Malformed, match="certificate table"):
        certificates.load(raw)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=1300) | st.binary(min_size=1184, max_size=1184))
def test_no_bytes_crash_the_parser(raw: bytes):
    verdict = verify(raw, [raw], OPEN, AT, None, raw)
    assert not verdict.accepted
    assert verdict.as_dict()["verdict"] == "refused"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "measurements"),
        ({"measurements": "any"}, "report_data"),
        ({"measurements": (b"short",), "report_data": "any"}, "measurements"),
        ({"measurements": "any", "report_data": b"short"}, "report_data"),
        ({"measurements": "any", "report_data": "any", "nonce": b"n" * 16}, "nonce"),
        ({"measurements": "any", "report_data": "any", "vmpl": 4}, "vmpl"),
        ({"measurements": "any", "report_data": "any", "allow": frozenset(["all"])}, "allow"),
        ({"measurements": "any", "report_data": "any", "tcb_floor": "low"}, "tcb_floor"),
        ({"measurements": "any", "report_data": "any", "tcb_floor": {"Rome": {"snp": 1}}}, "tcb_floor"),
        ({"measurements": "any", "report_data": "any", "tcb_floor": {"Milan": {"fmc": 1}}}, "tcb_floor.Milan"),
        ({"measurements": "any", "report_data": "any", "platform_info": {"sev": True}}, "platform_info"),
    ],
)
def test_a_policy_that_leaves_a_demand_open_is_refused(fields: dict[str, Any], named: str):
    with pytest.raises(ConfigError) as caught:
        Policy(**fields)
    assert caught.value.field == named


def test_a_policy_file_is_read(tmp_path: Any):
    path = tmp_path / "policy.yaml"
    digits = "1" * 96
    path.write_text(
        f"measurements: [{digits}]\nnonce: {'2' * 32}\nvmpl: 0\nallow: [debug]\ntcb_floor: {{Milan: {{snp: 0x18}}}}"
    )
    read = Policy(**policy.read(path))
    assert read.measurements == (bytes.fromhex(digits),)
    assert read.floor("Milan") == {"snp": 0x18}
    for text in ("[", "a", "unknown: 1", "vmpl: x", "measurements: zz", "allow: debug", "tcb_floor: {Milan: 3}"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            policy.read(path)


def test_pins_are_of_the_root_key(case: Any):
    root = certificates.load(case.certificates[1])[0]
    assert chain.PINS[chain.key_digest(root)].lower() == case.folder.name.split("-")[0]
