"""What a record is worth: recomputed from its evidence, whatever its fields say."""

import base64
import copy
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from privbench.benchmarks.overhead import proof
from privbench.benchmarks.overhead import record as records
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee.platforms.platform import Evidence
from privbench.defenses.tee.platforms.software.authority import Authority
from privbench.defenses.tee.platforms.software.firmware import Launched, evidence
from privbench.defenses.tee.software import MARK

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def chip():
    return Authority(NOW).chip()


class Emulated:
    name = "software"

    def __init__(self, chip):
        self.chip = chip

    def evidence(self, report_data: bytes) -> Evidence:
        return evidence(self.chip, Launched(b"m" * 48), report_data)


@pytest.fixture
def emulated(make_record, chip):
    """A record with a report of the software platform over its digest."""
    return proof.bind(make_record(), Emulated(chip))


def test_without_a_report_nothing_is_assured(make_record):
    claims = [{"name": "attestation report", "strength": "proof", "found": True, "says": "hardware: Milan"}]
    found = proof.proven(make_record(arm="snp", signs=claims))
    assert (found.assurance, found.reason) == ("none", "no report came with it")


def test_a_software_platform_s_report_is_software(emulated):
    records.check(emulated, "emulated")
    found = proof.proven(emulated, NOW)
    assert found.assurance == "software"
    assert found.verdict is not None
    assert found.verdict.report is not None
    assert found.verdict.report.report_data == records.digest(emulated)


def test_no_field_makes_software_into_hardware(emulated):
    """The cheat: everything that can be written without AMD's key says hardware."""
    emulated["evidence"]["platform"] = "sev_snp"
    assert proof.proven(emulated, NOW).assurance == "software"
    cheated = copy.deepcopy(emulated)
    cheated["arm"] = "snp"
    cheated["signs"] = [{"name": "attestation report", "strength": "proof", "found": True, "says": "hardware"}]
    found = proof.proven(cheated, NOW)
    assert found.assurance == "none"
    assert "report_data" in found.reason


def test_a_claim_that_is_part_of_the_digest_is_still_software(make_record, chip):
    claims = [{"name": "attestation report", "strength": "proof", "found": True, "says": "hardware: Milan"}]
    bound = proof.bind(make_record(arm="snp", signs=claims), Emulated(chip))
    bound["evidence"]["platform"] = "sev_snp"
    assert proof.proven(bound, NOW).assurance == "software"


def test_taking_the_marks_off_a_software_report_breaks_its_signature(emulated):
    raw = bytearray(base64.b64decode(emulated["evidence"]["report"]))
    for at in (0x10, 0x1A0):
        assert raw[at : at + len(MARK)] == MARK
        raw[at : at + len(MARK)] = b"\x00" * len(MARK)
    emulated["evidence"]["report"] = base64.b64encode(bytes(raw)).decode()
    assert proof.proven(emulated, NOW).assurance == "none"


def test_leaving_out_its_root_leaves_nothing(emulated):
    emulated["evidence"]["certificates"] = emulated["evidence"]["certificates"][:1]
    assert proof.proven(emulated, NOW).assurance == "none"


@pytest.mark.parametrize("change", ["time", "packages", "other evidence", "no base64"])
def test_a_record_that_was_changed_after_its_report_has_no_proof(emulated, make_record, chip, change):
    if change == "time":
        emulated["measurements"][0]["wall_ns"][0] -= 1
    elif change == "packages":
        emulated["packages"]["torch"] = "1.0"
    elif change == "other evidence":
        emulated["evidence"] = proof.bind(make_record(boot="another"), Emulated(chip))["evidence"]
    else:
        emulated["evidence"]["report"] = "!"
    assert proof.proven(emulated, NOW).assurance == "none"


def test_a_genuine_report_that_isn_t_over_the_record_proves_nothing(make_record):
    folder = Path(__file__).resolve().parents[3] / "shared" / "snp" / "milan-v3-dstack"
    if not folder.is_dir():
        pytest.skip("the attestation case milan-v3-dstack isn't on this machine")
    raw = [(folder / name).read_bytes() for name in ("report.bin", "vcek.der", "ask.der", "ark.der")]
    borrowed = [base64.b64encode(one).decode() for one in raw]
    made = make_record(evidence={"platform": "sev_snp", "report": borrowed[0], "certificates": borrowed[1:]})
    found = proof.proven(made, datetime(2026, 11, 24, tzinfo=UTC))
    assert found.assurance == "none"
    assert found.verdict is not None
    assert found.verdict.failed == ["report_data"]  # AMD's signature holds, and is of another guest's wish


AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def attested(make_record, forge):
    """A record in a guest whose processor's keys hang from a root of the tests' own, and that root."""
    made = make_record(arm="snp")
    guest = forge(fields={0x50: records.digest(made)})
    encoded = [base64.b64encode(one).decode() for one in (guest.report(), *guest.chain())]
    made["evidence"] = {"platform": "sev_snp", "report": encoded[0], "certificates": encoded[1:]}
    return made, certs.load(guest.ark())[0]


def test_a_report_under_a_root_that_the_reader_names_is_custom(attested):
    made, root = attested
    assert proof.proven(made, AT, root).assurance == "custom"
    assert proof.proven(made, AT).assurance == "none"  # nobody is trusted because a record says so


def test_a_report_under_a_pinned_root_is_hardware_as_long_as_nothing_is_changed(attested, monkeypatch):
    made, root = attested
    monkeypatch.setattr(chains, "PINS", {chains.key_digest(root): "Milan"})
    found = proof.proven(made, AT)
    assert (found.assurance, found.reason) == ("hardware", "a report of Milan over this record's digest")
    made["measurements"][0]["wall_ns"][0] += 1
    assert proof.proven(made, AT).assurance == "none"


def test_a_debugged_guest_and_a_host_s_report_prove_nothing(make_record, forge, monkeypatch):
    made = make_record()
    for fields in ({0x08: struct.pack("<Q", 0x30000 | 1 << 19)}, {0x30: struct.pack("<I", 0xFFFFFFFF)}):
        guest = forge(fields={0x50: records.digest(made), **fields})
        encoded = [base64.b64encode(one).decode() for one in (guest.report(), *guest.chain())]
        monkeypatch.setattr(chains, "PINS", {chains.key_digest(certs.load(guest.ark())[0]): "Milan"})
        evidence = {"platform": "sev_snp", "report": encoded[0], "certificates": encoded[1:]}
        assert proof.proven({**made, "evidence": evidence}, AT).assurance == "none"


def test_an_expired_certificate_proves_nothing(attested, monkeypatch):
    made, root = attested
    monkeypatch.setattr(chains, "PINS", {chains.key_digest(root): "Milan"})
    found = proof.proven(made, AT + timedelta(days=30))
    assert found.assurance == "none"
    assert "chain_validity" in found.reason
