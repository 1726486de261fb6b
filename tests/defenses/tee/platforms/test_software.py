"""The software platform: true in form, measured by what it loads, and never taken for hardware."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.usage import processes
from privbench.defenses.tee.command import attest
from privbench.defenses.tee.platforms import Evidence, Unavailable
from privbench.defenses.tee.platforms.host import Guest, alive
from privbench.defenses.tee.platforms.software import Software, authority, code, firmware, nursery
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.report import parse
from privbench.defenses.tee.software import LABEL, MARK, MARKER
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.verify import verify

ECHO = """
import os, sys
from multiprocessing.connection import Listener
import msgpack
import numpy

def serve(platform, socket):
    with Listener(socket, "AF_UNIX") as listener, listener.accept() as connection:
        while True:
            try:
                asked = connection.recv_bytes()
            except EOFError:
                return
            made = platform.evidence(asked)
            said = {"report": made.report, "certificates": made.certificates, "path": sys.path, "pid": os.getpid()}
            said |= {"parent": os.getppid(), "drawn": numpy.random.random()}
            connection.send_bytes(msgpack.packb(said))
"""
PROGRAM = "privbench.defenses.tee.echo:serve"
PATCH = {"defenses/tee/echo.py": ECHO.encode()}
ASKED = bytes(range(64))


@pytest.fixture(scope="module")
def platform() -> Iterator[Software]:
    with Software() as made:
        yield made


@pytest.fixture(scope="module")
def guest(platform: Software) -> Guest:
    return platform.launch(PROGRAM, host_data=b"h" * 32, patches=PATCH)


def ask(connection: Connection, report_data: bytes) -> dict[str, Any]:
    connection.send_bytes(report_data)
    return msgpack.unpackb(connection.recv_bytes())


def policy(guest: Guest, **more: Any) -> Policy:
    fields = {"measurements": (guest.measurement,), "report_data": ASKED, "allow": frozenset(["software-tee"]), **more}
    return Policy(**fields)


def judge(platform: Software, said: dict[str, Any], demanded: Policy) -> Verdict:
    return verify(said["report"], said["certificates"], demanded, datetime.now(UTC), platform.root)


def failed(verdict: Verdict) -> set[str]:
    return {c.name for c in verdict.checks if c.status == "fail"}


def test_a_guests_evidence_is_software(platform: Software, guest: Guest):
    said = ask(guest.connection, ASKED)
    verdict = judge(platform, said, policy(guest, host_data=b"h" * 32, vmpl=0))
    assert (failed(verdict), verdict.assurance, verdict.product) == (set(), "software", "Software")
    report = parse(said["report"])
    assert report.chip_id.startswith(MARK)
    assert report.family_id.startswith(MARK)
    assert said["pid"] == guest.pid != os.getpid()


def test_it_needs_the_policys_word_and_the_root_by_name(platform: Software, guest: Guest):
    said = ask(guest.connection, ASKED)
    assert failed(judge(platform, said, policy(guest, allow=frozenset()))) == {"software_tee"}
    verdict = verify(said["report"], said["certificates"], policy(guest), datetime.now(UTC))
    assert (failed(verdict), verdict.assurance) == ({"root_key"}, "none")


def test_another_platforms_root_is_refused(platform: Software, guest: Guest):
    other = authority.Authority().chip()
    said = ask(guest.connection, ASKED)
    verdict = verify(
        said["report"], said["certificates"], policy(guest), datetime.now(UTC), _load(other.certificates[2])
    )
    assert "root_key" in failed(verdict)


def test_the_measurement_is_that_of_what_was_loaded(platform: Software, guest: Guest):
    assert guest.measurement == code.measure(code.installed() | PATCH, PROGRAM)
    changed = {"defenses/tee/echo.py": ECHO.encode() + b"# a change\n"}
    other = platform.launch(PROGRAM, patches=changed)
    said = ask(other.connection, ASKED)
    assert failed(judge(platform, said, policy(guest))) == {"measurement"}
    assert parse(said["report"]).measurement == other.measurement == code.measure(code.installed() | changed, PROGRAM)


def test_a_guest_runs_the_measured_copy(guest: Guest):
    first = Path(ask(guest.connection, ASKED)["path"][0])
    assert (first / "privbench/defenses/tee/echo.py").read_text() == ECHO
    assert first.stat().st_mode & 0o077 == 0
    assert first.parent.stat().st_mode & 0o077 == 0


def test_measurements_tell_files_programs_and_places_apart():
    files = {"a.py": b"1", "b.py": b"2"}
    assert code.measure(files, "m:f") == code.measure(dict(reversed(files.items())), "m:f")
    others = ({"a.py": b"1", "b.py": b"3"}, {"a.py": b"1"}, {"a.py": b"1b.py", "": b"2"}, {"a.py": b"2", "b.py": b"1"})
    assert len({code.measure(f, "m:f") for f in (files, *others)} | {code.measure(files, "m:g")}) == 6


def test_modules_from_elsewhere_are_named(tmp_path: Path):
    inside = str(tmp_path / "privbench/x.py")
    loaded = [
        ("privbench.x", inside),
        ("privbench.y", "/elsewhere/y.py"),
        ("json", "/lib/json.py"),
        ("privbench", None),
    ]
    assert code.outside(tmp_path, loaded) == ["privbench.y"]


@pytest.mark.parametrize("asked", [b"", b"short", bytes(65)])
def test_report_data_of_another_length_is_refused(platform: Software, asked: bytes):
    guest = platform.launch(PROGRAM, patches=PATCH)
    guest.connection.send_bytes(asked)
    with pytest.raises(EOFError):  # the program ends with the platform's refusal
        guest.connection.recv_bytes()


@pytest.mark.parametrize(
    ("options", "field"), [({"program": "os:system"}, "program"), ({"host_data": b"short"}, "host_data")]
)
def test_bad_launches_are_refused(platform: Software, options: dict[str, Any], field: str):
    with pytest.raises(ConfigError) as caught:
        platform.launch(**{"program": PROGRAM, **options})
    assert caught.value.field == field


def test_a_guest_that_fails_is_unavailable_with_its_reason(platform: Software):
    with pytest.raises(Unavailable, match="ended before it listened: ModuleNotFoundError: No module named"):
        platform.launch("privbench.defenses.tee.nothing:serve")


def test_keys_and_processes_end_with_the_platform():
    with Software() as made:
        guest = made.launch(PROGRAM, patches=PATCH)
        folder = Path(ask(guest.connection, ASKED)["path"][0]).parent
        assert folder.exists()
    with pytest.raises(Unavailable):
        made.launch(PROGRAM, patches=PATCH)
    assert not folder.exists()
    assert not Path(f"/proc/{guest.pid}").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_guests_end_with_a_manufacturer_that_is_killed(how: signal.Signals):
    with Software() as made:
        guest = made.launch(PROGRAM, patches=PATCH)
        folder = Path(ask(guest.connection, ASKED)["path"][0]).parent
        made._process.send_signal(how)
        made._process.wait()
        deadline = time.monotonic() + 20
        while alive(guest.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(Unavailable):
            made.launch(PROGRAM, patches=PATCH)
    assert not alive(guest.pid)
    assert not folder.exists()


def test_nothing_outlives_a_killed_host():
    script = (
        "import sys, time; from privbench.defenses.tee.platforms.software import Software, nursery;"
        "s = Software(); g = s.launch(sys.argv[1], patches={sys.argv[2]: sys.argv[3].encode()});"
        "print(s._process.pid, nursery._nursery.process.pid, g.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, PROGRAM, *PATCH, ECHO]
    host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    pids = [int(pid) for pid in host.stdout.readline().split()]
    assert [alive(pid) for pid in pids] == [True] * 3
    host.kill()
    host.wait()
    host.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_guests_of_all_platforms_are_forked_from_one_process_and_draw_for_themselves(platform: Software, guest: Guest):
    with Software() as other:
        said = [ask(g.connection, ASKED) for g in (guest, other.launch(PROGRAM, patches=PATCH))]
    (parent,) = {one["parent"] for one in said}
    assert nursery._nursery is not None
    assert parent == nursery._nursery.process.pid
    assert said[0]["drawn"] != said[1]["drawn"]
    counted = processes()
    assert guest.pid in counted
    assert parent not in counted, "it is none of a run's: another run may have started it"


def test_whoever_leaves_without_its_answer_takes_nobody_along(platform: Software, guest: Guest):
    with nursery.admitted() as asked:
        asked.send(b'{"end": 0}')
        time.sleep(0.2)  # the answer lies there unread
    other = platform.launch(PROGRAM, patches=PATCH)
    assert ask(other.connection, ASKED)["parent"] == ask(guest.connection, ASKED)["parent"]


def test_where_that_process_was_killed_there_is_another(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nursery, "_nursery", None)  # that of the other tests stays
    with Software() as first:
        guest = first.launch(PROGRAM, patches=PATCH)
        made = nursery._nursery
        assert made is not None
        made.process.kill()
        made.process.wait()
        with Software() as second:
            assert ask(second.launch(PROGRAM, patches=PATCH).connection, ASKED)["parent"] != made.process.pid
        assert not alive(guest.pid)
        with pytest.raises(Unavailable, match="no guest can be started"):
            first.launch(PROGRAM, patches=PATCH)
    assert nursery._nursery is not None
    nursery._nursery.close()


def test_certificates_say_what_they_are(platform: Software, guest: Guest):
    for der in ask(guest.connection, ASKED)["certificates"]:
        certificate = x509.load_der_x509_certificate(der)
        assert LABEL in certificate.subject.rfc4514_string()
        assert certificate.extensions.get_extension_for_oid(MARKER).critical


def test_what_looks_like_it_but_is_not_all_of_it_is_refused(forge: Any):
    """A forged chain of another root whose report claims to be of the software platform, and the other way round."""
    made = forge(fields={0x10: MARK})
    opened = Policy("any", "any", tcb_floor="none", allow=frozenset(["software-tee"]))
    at = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert failed(verify(made.report(), made.chain(), opened, at, _load(made.ark()))) == {"software_tee"}
    chip = authority.Authority().chip()
    plain = replace(chip, id=b"CHIP".ljust(64, b"\0"))
    said: Evidence = firmware.evidence(plain, firmware.Launched(b"m" * 48), ASKED)
    verdict = verify(said.report, said.certificates, opened, datetime.now(UTC), _load(chip.certificates[2]))
    assert {"software_tee", "chip_id"} <= failed(verdict)


def test_the_command_verifies_it_as_software(platform: Software, guest: Guest, tmp_path: Path, capsys: Any):
    said = ask(guest.connection, ASKED)
    (tmp_path / "report.bin").write_bytes(said["report"])
    for n, der in enumerate(said["certificates"]):
        (tmp_path / f"{n}.der").write_bytes(der)
    root = tmp_path / "root.pem"
    root.write_bytes(platform.root.x509.public_bytes(Encoding.PEM))
    given = ["verify", "--report", str(tmp_path / "report.bin"), "--certs", str(tmp_path), "--root", str(root)]
    given += ["--measurement", guest.measurement.hex(), "--report-data", ASKED.hex()]
    assert attest(given) == 1
    assert "software_tee" in capsys.readouterr().out
    assert attest([*given, "--allow", "software-tee"]) == 0
    assert "accepted: assurance software" in capsys.readouterr().out


def _load(der: bytes) -> Any:
    from privbench.defenses.tee import certificates

    return certificates.load(der)[0]
