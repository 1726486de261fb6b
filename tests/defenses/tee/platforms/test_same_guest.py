"""Attested runs inside an SEV-SNP guest: against a simulated processor, and refused where there is none."""

import multiprocessing
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation import processes as engines
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.tasks import Classification
from privbench.defenses import Defense
from privbench.defenses.channel import Attested, RoundRefused
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee import policy
from privbench.defenses.tee.platforms import Evidence, Unavailable, same_guest
from privbench.defenses.tee.platforms.host import Launch
from privbench.defenses.tee.platforms.same_guest import SameGuest
from privbench.defenses.tee.platforms.sev_snp import SEVSNP
from privbench.defenses.tee.protocol import program
from privbench.defenses.tee.protocol.program import PROGRAM
from privbench.defenses.tee.wire import pack, unpack

SNP = Defense(channel=Attested(platform="sev_snp"))


class Child:
    """A program in a fork of this process, where the processor's simulation still holds."""

    def __init__(self, socket: str):
        given = (SEVSNP(), socket)
        self._process = multiprocessing.get_context("fork").Process(target=program.serve, args=given, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.join()


@pytest.fixture
def processor(forge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A simulated processor: its root counts as AMD's here, and programs are forked."""
    made = forge()
    monkeypatch.setattr(sys.modules[type(made).__module__], "AT", datetime.now(UTC))
    key = x509.load_der_x509_certificate(made.ark()).public_key()
    digest = sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    monkeypatch.setitem(chains.PINS, digest, "Milan")
    chain = tuple(made.chain())
    made.measurement = b"m" * 48

    def evidence(platform: SEVSNP, report_data: bytes) -> Evidence:
        return Evidence(forge(fields={0x50: report_data, 0x90: made.measurement}).report(), chain)

    def start(host: SameGuest, launch: Launch) -> Any:
        socket = str(Path(host._folder.name) / str(len(host._processes) + 1))
        process: Any = Child(socket)
        host._processes.append(process)
        return socket, process

    monkeypatch.setattr(SEVSNP, "evidence", evidence)
    monkeypatch.setattr(SameGuest, "_start", start)
    return made


@pytest.mark.parametrize("downlink", ["plain", "sealed"])
def test_a_run_in_a_guest_is_that_of_the_plain_channel_and_its_evidence_is_the_processors(
    processor: Any, task: Classification, mlp: torch.nn.Module, tmp_path: Path, downlink: Any
):
    settings = FederationSettings(clients=3, rounds=2)
    made = Federation(settings, task, mlp, Defense(channel=Attested(platform="sev_snp", downlink=downlink)))
    session: Any = made.session(made.start(), "a run", tmp_path)
    try:
        side = made.client_side(session)
        engine = engines.start(side, 1, torch.device("cpu"), apart=True)
        done = [r.released.model for r in made.run(made.start(), side, engine)]
        engine.close()
        assert session.assurance == "hardware"
        assert session._run.manifest.measurements == ((b"m" * 48).hex(),)
    finally:
        session.close()
    plain = Federation(settings, task, mlp, Defense())
    side = plain.client_side()
    expected = [r.released.model for r in plain.run(plain.start(), side, engines.Serial(side))]
    assert all(torch.equal(a, b) for a, b in zip(done, expected, strict=True))
    assert not (tmp_path / "refusals.jsonl").exists()


def test_a_run_is_not_continued_in_another_guest(
    processor: Any, forge: Callable[..., Any], task: Classification, mlp: torch.nn.Module, tmp_path: Path
):
    made = Federation(FederationSettings(clients=3, rounds=2), task, mlp, SNP)
    made.session(made.start(), "a run", tmp_path).close()
    processor.measurement = b"x" * 48
    session = made.session(made.start(), "a run", tmp_path)
    side = made.client_side(session)
    engine = engines.start(side, 1, torch.device("cpu"), apart=True)
    try:
        with pytest.raises(RoundRefused, match=r"least_cohort: 0 clients .* refused: wrong_measurement x3"):
            list(made.run(made.start(), side, engine))
    finally:
        engine.close()
        session.close()
    refusals = (tmp_path / "refusals.jsonl").read_text().splitlines()
    assert sum('"by": "client", "name": "wrong_measurement"' in line for line in refusals) == 3


def test_clients_demand_patched_firmware_unless_the_configuration_waives_it(
    processor: Any, task: Classification, mlp: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(policy, "ADVISORY", {"Milan": {"snp": 255}})
    for floor in ("none", "advisory"):
        settings = FederationSettings(clients=3, rounds=1)
        made = Federation(settings, task, mlp, Defense(channel=Attested(platform="sev_snp", tcb_floor=floor)))
        session: Any = made.session(made.start(), "a run", tmp_path / floor)
        side = made.client_side(session)
        engine = engines.start(side, 1, torch.device("cpu"), apart=True)
        try:
            if floor == "none":
                assert len(list(made.run(made.start(), side, engine))) == 1
                assert session.assurance == "none", "an audit demands it all the same"
                continue
            with pytest.raises(RoundRefused, match=r"clients refused: evidence x3 .tcb_floor: reported_tcb snp"):
                list(made.run(made.start(), side, engine))
        finally:
            engine.close()
            session.close()


def test_a_machine_that_is_no_guest_is_refused_before_anything_is_trained(
    task: Classification, mlp: torch.nn.Module, tmp_path: Path
):
    if Path("/dev/sev-guest").exists():
        pytest.skip("this is an SEV-SNP guest")
    made = Federation(FederationSettings(clients=3, rounds=2), task, mlp, SNP)
    with pytest.raises(Unavailable, match=r"configfs-tsm: .*; /dev/sev-guest: "):
        made.session(made.start(), "a run", tmp_path)


def test_programs_are_processes_of_their_own(monkeypatch: pytest.MonkeyPatch, forge: Callable[..., Any]):
    monkeypatch.setattr(SEVSNP, "evidence", lambda self, data: Evidence(forge().report(), ()))
    host = SameGuest()
    try:
        (guest,) = host.launch_several([Launch(PROGRAM)])
        guest.connection.send_bytes(pack({"request": "open"}))
        assert unpack(guest.connection.recv_bytes())["refused"] == "out_of_order"
        with pytest.raises(ConfigError, match="patches"):
            host.launch_several([Launch(PROGRAM, patches={"defenses/x.py": b""})])
        with pytest.raises(Unavailable, match=r"ended before it listened: .*no_such_program"):
            host.launch_several([Launch(f"{same_guest.__name__}:no_such_program")])
    finally:
        host.close()
        host.close()


def test_clients_in_guests_need_the_software_platform():
    with pytest.raises(ConfigError, match="attest_clients"):
        Attested(platform="sev_snp", attest_clients=True)
