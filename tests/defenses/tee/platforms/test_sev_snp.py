"""The ``sev_snp`` platform: evidence that verifies, or what was tried and why it failed."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from privbench.benchmarks.build import ConfigError, build
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee.platforms import Evidence, Platform, Unavailable, configfs, keyservice
from privbench.defenses.tee.platforms.sev_snp import SEVSNP
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.report import parse
from privbench.defenses.tee.verify import verify

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
ASKED = bytes(range(64))
SERVICE = "https://kdsintf.amd.com"


def judge(evidence: Evidence, made: Any = None, report_data: bytes = ASKED) -> Any:
    demanded = Policy(
        measurements="any", report_data=report_data, tcb_floor="none", allow=frozenset({"masked-chip-id"})
    )
    root = certs.load(made.root)[0] if made else None
    return verify(evidence.report, evidence.certificates, demanded, AT, root)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, tsm: Any, tmp_path: Path, service: Any) -> Any:
    """A platform over the simulated configfs-tsm, with a cache of its own and a key service without pages."""

    def make(reply: Any, **settings: Any) -> SEVSNP:
        kernel = tsm(reply)
        monkeypatch.setattr(configfs, "Files", lambda: kernel)
        return SEVSNP(**{"cache": str(tmp_path / "cache"), "device": str(tmp_path / "none"), **settings})

    return make


def pem(*ders: bytes) -> bytes:
    return b"".join(certs.load(der)[0].x509.public_bytes(Encoding.PEM) for der in ders)


def serve(service: Any, made: Any, leaf: bool = True) -> None:
    report = parse(made.reply(bytes(64), 0)[0])
    service.put(f"{SERVICE}/{made.kind.lower()}/v1/{made.product}/cert_chain", pem(made.ask, made.root))
    if leaf:
        service.put(keyservice.leaf_url(made.product, report)[0], made.leaf)


def test_real_evidence_verifies(inside: Any, genoa: Any, service: Any):
    platform: Platform = inside(lambda *_: (genoa.outblob, genoa.auxblob))
    evidence = platform.evidence(genoa.report_data)
    assert evidence == Evidence(genoa.outblob, tuple(genoa.chain))
    verdict = judge(evidence, report_data=genoa.report_data)
    assert (verdict.accepted, verdict.assurance, verdict.product) == (True, "hardware", "Genoa")
    assert not service.asked


def test_real_evidence_from_the_key_service(inside: Any, genoa: Any, service: Any):
    vcek, ask, ark = genoa.chain
    report = parse(genoa.outblob)
    service.put(f"{SERVICE}/vcek/v1/Genoa/cert_chain", pem(ask, ark))
    service.put(keyservice.leaf_url("Genoa", report)[0], vcek)
    for network in (True, False):  # the second time from the cache
        evidence = inside(lambda *_: (genoa.outblob, b""), network=network).evidence(genoa.report_data)
        assert judge(evidence, report_data=genoa.report_data).assurance == "hardware"
    assert len(service.asked) == 2


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("kind", ["VCEK", "VLEK"])
def test_forged_evidence_verifies_under_its_root(inside: Any, guest: Any, product: str, kind: str):
    made = guest(product=product, kind=kind)
    evidence = inside(made.reply, vmpl=2).evidence(ASKED)
    assert judge(evidence, made).assurance == "custom"
    assert parse(evidence.report).vmpl == 2


def test_the_device_comes_second(inside: Any, guest: Any, sev_guest: Any, attach: Any, tmp_path: Path):
    made = guest()
    path = attach(sev_guest(made.reply))
    for configfs_folder in (str(tmp_path / "nowhere"), "/sys/kernel/config/tsm/report"):
        platform = inside(lambda *_: (bytes(1184), b""), device=str(path), configfs=configfs_folder)
        assert judge(platform.evidence(ASKED), made).accepted


def test_everything_that_was_tried_is_named(tmp_path: Path):
    platform = SEVSNP(configfs=str(tmp_path / "none"), device="/dev/no-sev-guest")
    with pytest.raises(Unavailable) as caught:
        platform.evidence(ASKED)
    assert str(caught.value) == "configfs-tsm: no such folder; /dev/no-sev-guest: no such device"


def test_no_report_over_anything_else(inside: Any, guest: Any, sev_guest: Any, attach: Any):
    made = guest()
    stale = made.reply(b"o" * 64, 0)
    path = attach(sev_guest(lambda *_: stale))
    with pytest.raises(Unavailable, match=r"configfs-tsm: .*REPORT_DATA.*; .*/sev-guest: .*REPORT_DATA"):
        inside(lambda *_: stale, device=str(path)).evidence(ASKED)


@pytest.mark.parametrize("given", [("VLEK",), ("VLEK", "ARK"), ("VCEK",), ("VCEK", "ASK"), ("ARK", "ASK"), ()])
def test_what_the_host_leaves_out_is_fetched(inside: Any, guest: Any, table: Any, service: Any, given: tuple[str, ...]):
    made = guest(kind="VLEK" if "VLEK" in given else "VCEK")
    whole = {"ARK": made.root, "ASK": made.ask, made.kind: made.leaf}
    made.table = table(**{name: whole[name] for name in given})
    with pytest.raises(Unavailable, match=r"the host gave .* is missing: .* let network=true"):
        inside(made.reply).evidence(ASKED)
    assert not service.asked
    serve(service, made, leaf=made.kind == "VCEK")
    evidence = inside(made.reply, network=True).evidence(ASKED)
    assert judge(evidence, made).accepted
    assert len(service.asked) == ("ASK" not in given or "ARK" not in given) + (made.kind not in given)


def test_files_can_be_put_into_the_cache(inside: Any, guest: Any, tmp_path: Path, service: Any):
    made = guest(kind="VLEK")
    made.table = b""
    folder = tmp_path / "cache" / "Milan"
    folder.mkdir(parents=True)
    (folder / "vlek-chain.pem").write_bytes(pem(made.root, made.ask))
    with pytest.raises(Unavailable, match=r"the host gave no certificates; the VLEK is missing.*cloud provider"):
        inside(made.reply, network=True).evidence(ASKED)
    (folder / f"vlek-{made.tcb.hex()}.der").write_bytes(made.leaf)
    assert judge(inside(made.reply).evidence(ASKED), made).accepted
    assert not service.asked


def test_a_masked_chip(inside: Any, guest: Any, service: Any, table: Any):
    made = guest(fields={0x1A0: bytes(64), 0x48: b"\2\0\0\0"})
    assert judge(inside(made.reply).evidence(ASKED), made).accepted
    made.table = table(ASK=made.ask, ARK=made.root)
    with pytest.raises(Unavailable, match="CHIP_ID is masked, so the key service can't be asked"):
        inside(made.reply, network=True).evidence(ASKED)
    assert not service.asked


def test_a_stale_leaf_is_replaced_or_passed_on(inside: Any, guest: Any, table: Any, service: Any):
    made = guest()
    # Another key under the same name, as the VCEK of the firmware before an update has.
    keys = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
    stale = made.certificate("SEV-VCEK", "SEV-Milan", *keys, False, {})
    made.table = table(ARK=made.root, ASK=made.ask, VCEK=stale)
    evidence = inside(made.reply).evidence(ASKED)
    assert "report_signature" in {c.name for c in judge(evidence, made).checks if c.status == "fail"}
    serve(service, made)
    evidence = inside(made.reply, network=True).evidence(ASKED)
    assert evidence.certificates[0] == made.leaf
    assert judge(evidence, made).accepted


def test_an_altered_report_is_the_verifiers_to_judge(inside: Any, guest: Any):
    made = guest(fields={0x2A0: b"\1" * 48})
    evidence = inside(made.reply).evidence(ASKED)
    assert evidence.certificates == (made.leaf, made.ask, made.root)
    assert not judge(evidence, made).accepted


@pytest.mark.parametrize("spoil", ["twice", "junk"])
def test_a_table_that_cant_be_read(inside: Any, guest: Any, service: Any, table: Any, spoil: str):
    made = guest()
    whole = table(VCEK=made.leaf)
    made.table = whole[:24] + whole if spoil == "twice" else table(VCEK=b"junk")
    with pytest.raises(Unavailable, match="the host's certificates can't be read"):
        inside(made.reply).evidence(ASKED)
    serve(service, made)
    assert judge(inside(made.reply, network=True).evidence(ASKED), made).accepted


def test_a_table_of_zeros(inside: Any, guest: Any):
    made = guest()
    made.table = bytes(4096)
    with pytest.raises(Unavailable, match=r"^the host gave no certificates; "):
        inside(made.reply).evidence(ASKED)


def test_a_version_that_names_no_product(inside: Any, guest: Any, service: Any, table: Any):
    made = guest(version=2)
    serve(service, made)
    assert judge(inside(made.reply).evidence(ASKED), made).accepted
    # From the leaf.
    made.table = table(VCEK=made.leaf)
    assert judge(inside(made.reply, network=True).evidence(ASKED), made).accepted
    made.table = b""
    with pytest.raises(Unavailable, match=r"version 2 .*: set product to one of Milan, Genoa, Turin"):
        inside(made.reply, network=True).evidence(ASKED)
    assert judge(inside(made.reply, network=True, product="Milan").evidence(ASKED), made).accepted
    # Where version 3 has the CPUID, version 2 has nothing.
    made = guest(version=2, fields={0x188: bytes((0x19, 0x11, 1))})
    made.table = b""
    with pytest.raises(Unavailable, match="set product"):
        inside(made.reply).evidence(ASKED)


def test_unknown_processors_and_keys(inside: Any, guest: Any):
    made = guest(fields={0x188: bytes(3)})
    made.table = b""
    with pytest.raises(Unavailable, match="CPUID family 0x0 model 0x0"):
        inside(made.reply).evidence(ASKED)
    made = guest(fields={0x188: bytes((0x1B, 0, 0))})
    # With a whole chain the verifier is asked, and refuses.
    assert not judge(inside(made.reply).evidence(ASKED), made).accepted
    made.table = b""
    with pytest.raises(Unavailable, match="CPUID family 0x1b model 0x0"):
        inside(made.reply).evidence(ASKED)
    made = guest(fields={0x48: b"\x1c\0\0\0", 0x188: bytes(3)})
    made.table = b""
    with pytest.raises(Unavailable, match="SIGNING_KEY"):
        inside(made.reply).evidence(ASKED)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"vmpl": 4}, "vmpl"),
        ({"vmpl": -1}, "vmpl"),
        ({"attempts": 0}, "attempts"),
        ({"product": "Rome"}, "product"),
        ({"configfs": ""}, "configfs"),
        ({"device": ""}, "device"),
        ({"cache": ""}, "cache"),
    ],
)
def test_bad_fields_are_named(settings: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=f"^{named}="):
        SEVSNP(**settings)


def test_it_is_a_platform():
    target = "privbench.defenses.tee.platforms.sev_snp.SEVSNP"
    made = build({"_target_": target, "vmpl": 1, "network": True, "cache": None})
    assert made == SEVSNP(vmpl=1, network=True)
    assert made.name == "sev_snp"
    for length in (0, 63, 65):
        with pytest.raises(ConfigError, match=r"^report_data="):
            made.evidence(bytes(length))
