"""Whole records: taken, written, shown, and refused."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.overhead import command, proof, recording, showing
from privbench.benchmarks.overhead import record as records
from privbench.benchmarks.overhead.recording import Recording
from privbench.benchmarks.overhead.workloads.system_calls import SystemCalls
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps, Unavailable
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee.platforms import platform
from privbench.defenses.tee.platforms.sev_snp import SEVSNP

SMALL = ["set=quick", "workload=system_calls", "workloads.system_calls.calls=10", "repeats=3"]


@dataclass(frozen=True)
class Scribbler:
    """Leaves files behind, and has a case that can't run."""

    name: str = "a"

    def cases(self, bench: Bench) -> Iterator[Case]:
        @contextmanager
        def opened() -> Iterator[Steps]:
            assert not [*bench.scratch.iterdir()]
            yield Steps(lambda: (bench.scratch / "left").write_text("x"))

        @contextmanager
        def refused() -> Iterator[Steps]:
            raise Unavailable("there is none")
            yield

        yield Case(self.name, opened, shared=True)
        yield Case("b", refused)


def small(**changes) -> Recording:
    return Recording(**{"workloads": {"calls": SystemCalls(calls=10)}, "repeats": 3, "warmup": 0, **changes})


def test_a_record_is_taken_and_holds_to_the_schema(tmp_path):
    told: list[dict] = []
    made, fault = recording.record(small(workloads={"mine": Scribbler()}, scratch=str(tmp_path)), told.append)
    assert fault is None
    records.write(tmp_path / "a.json", made)
    assert records.read(tmp_path / "a.json")["measurements"] == told
    first, second = told
    assert (first["status"], len(first["wall_ns"]), first["settings"]["name"]) == ("measured", 3, "a")
    assert (second["status"], second["reason"]) == ("unavailable", "there is none")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert made["signs"][0]["strength"] == "proof"
    assert made["signs"][0]["found"] is None


@dataclass(frozen=True)
class Breaking:
    """Its second repeat finds the disk full."""

    def cases(self, bench: Bench) -> Iterator[Case]:
        @contextmanager
        def opened() -> Iterator[Steps]:
            times: list[int] = []

            def run() -> None:
                times.append(1)
                if len(times) == 2:
                    raise OSError(28, "No space left on device")

            yield Steps(run)

        yield Case("a", opened)


def test_a_case_that_fails_is_no_measurement_and_the_others_are_kept():
    made, fault = recording.record(small(workloads={"bad": Breaking(), "calls": SystemCalls(calls=10)}))
    assert fault == "bad/a failed"
    records.check(made, "made")
    first, *others = made["measurements"]
    assert (first["status"], first["wall_ns"]) == ("unavailable", [])
    assert "No space left on device" in first["reason"]
    assert [one["status"] for one in others] == ["measured", "measured"]


class Loose:
    """No dataclass."""

    def cases(self, bench: Bench) -> Iterator[Case]:
        yield from ()


@dataclass(frozen=True)
class Unwritable:
    """A field that JSON doesn't have."""

    rate: float = float("nan")

    def cases(self, bench: Bench) -> Iterator[Case]:
        yield from ()


@pytest.mark.parametrize("workload", [Loose(), Unwritable()])
def test_a_workload_whose_settings_can_t_be_written_down_is_refused_beforehand(workload):
    with pytest.raises(ConfigError, match=r"workload\.mine"):
        small(workloads={"mine": workload})


def test_a_record_that_is_there_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "a.json").write_text("precious")
    assert command.overhead(["record", "--out", str(tmp_path / "a.json"), *SMALL]) == 2
    assert "isn't there yet" in capsys.readouterr().err
    assert (tmp_path / "a.json").read_text() == "precious"


def test_cases_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="mine/b"):
        recording.record(small(workloads={"mine": Scribbler(name="b")}))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"workloads": {}}, "workload"),
        ({"arm": " "}, "arm"),
        ({"repeats": 2}, "repeats"),
        ({"cpus": (4095,)}, "cpus"),
        ({"scratch": "/not/there"}, "scratch"),
    ],
)
def test_what_can_t_be_recorded_is_refused_by_name(change, field):
    with pytest.raises(ConfigError, match=field):
        small(**change)


@pytest.mark.parametrize(
    ("during", "shared", "said"),
    [
        ({"others": 0.05, "steal": 0.0}, True, []),
        ({"others": 0.5, "steal": 0.0}, False, ["took 50%"]),
        ({"others": 0.5, "steal": 0.0}, True, ["took 50%", "isn't credible"]),
        ({"others": 0.0, "steal": 0.1}, True, ["kept 10%"]),
        ({"others": None, "steal": None}, True, ["may have been shared"]),
        ({"others": None, "steal": None}, False, []),
    ],
)
def test_a_busy_machine_is_said_to_be_busy(during, shared, said):
    case = Case("a", lambda: None, shared=shared)  # pyright: ignore[reportArgumentType]
    found = recording._doubts({"load": {**during, "loadavg": None}}, case)
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_insisting_on_a_report_where_there_is_none_times_nothing(plant):
    told: list[dict] = []
    with pytest.raises(platform.Unavailable, match="no report"):
        recording.record(small(platform="sev_snp"), told.append, plant("kvm_guest"))
    assert not told


def test_a_guest_whose_report_fails_at_the_end_keeps_its_measurements(monkeypatch, plant, forge):
    """There is a sign of SEV-SNP, so a report is asked for; the second time the host is too busy."""
    asked: list[bytes] = []

    def evidence(self, report_data: bytes) -> platform.Evidence:
        asked.append(report_data)
        if len(asked) > 1:
            raise platform.Unavailable("the host throttles")
        guest = forge(fields={0x50: report_data})
        return platform.Evidence(guest.report(), tuple(guest.chain()))

    monkeypatch.setattr(SEVSNP, "evidence", evidence)
    monkeypatch.setattr(proof, "proven", lambda *_: proof.Proof("hardware", "as if"))
    made, fault = recording.record(small(), root=plant("snp_guest"))
    assert fault == "there is no report: the host throttles"
    assert made["evidence"] is None
    assert len(made["measurements"]) == 2
    assert asked[1] == records.digest(made)


def test_a_guest_that_shows_signs_and_gives_no_report_is_a_fault(monkeypatch, plant, tmp_path, capsys):
    def evidence(self, report_data: bytes) -> platform.Evidence:
        raise platform.Unavailable("the host gave no certificates")

    monkeypatch.setattr(SEVSNP, "evidence", evidence)
    monkeypatch.setattr(recording, "record", partial(recording.record, root=plant("snp_guest")))
    out = tmp_path / "a.json"
    assert command.overhead(["record", "--out", str(out), *SMALL]) == 1
    said = capsys.readouterr().err
    assert "recorded, but its protection isn't proven: no report: the host gave no certificates" in said
    made = records.read(out)
    assert made["evidence"] is None
    assert made["measurements"]


def test_a_report_that_is_refused_is_a_fault(monkeypatch, plant, forge):
    """The root of the tests' own isn't AMD's."""

    def evidence(self, report_data: bytes) -> platform.Evidence:
        guest = forge(fields={0x50: report_data})
        return platform.Evidence(guest.report(), tuple(guest.chain()))

    monkeypatch.setattr(SEVSNP, "evidence", evidence)
    made, fault = recording.record(small(), root=plant("snp_guest"))
    assert made["evidence"] is None
    assert fault is not None
    assert fault.startswith("its protection isn't proven: none: its report is refused")


def test_a_guest_s_record_is_hardware_s_under_its_processor_s_root(monkeypatch, plant, forge, tmp_path, capsys):
    monkeypatch.setattr(sys.modules[forge.__module__], "AT", datetime.now(UTC))
    root = certs.load(forge().ark())[0]
    monkeypatch.setattr(chains, "PINS", {chains.key_digest(root): "Milan"})

    def evidence(self, report_data: bytes) -> platform.Evidence:
        guest = forge(fields={0x50: report_data})
        return platform.Evidence(guest.report(), (*guest.chain()[:2], root.der))

    monkeypatch.setattr(SEVSNP, "evidence", evidence)
    made, fault = recording.record(small(arm="sev_snp"), root=plant("snp_guest"))
    assert fault is None
    first = made["signs"][0]
    assert (first["strength"], first["found"]) == ("proof", True)
    assert first["says"].startswith("hardware: a report of Milan")
    assert proof.proven(made).assurance == "hardware"
    records.write(tmp_path / "a.json", made)
    assert command.overhead(["show", str(tmp_path / "a.json")]) == 0
    assert "its times are that guest's word" in capsys.readouterr().out
    # A time that was improved afterwards is no longer what the guest asked for.
    made["measurements"][0]["wall_ns"][0] -= 1
    assert proof.proven(made).assurance == "none"


def test_an_interrupted_record_is_not_written(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "record", interrupted)
    assert command.overhead(["record", "--out", str(tmp_path / "a.json"), *SMALL]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_machine_without_a_sign_is_not_asked(monkeypatch, plant):
    monkeypatch.setattr(SEVSNP, "evidence", lambda *_: pytest.fail("it was asked"))
    made, _ = recording.record(small(), root=plant("bare_metal"))
    assert made["signs"][0]["found"] is None


def test_the_command_records_and_shows(tmp_path, capsys):
    out = tmp_path / "a.json"
    assert command.overhead(["record", "--out", str(out), "arm=plain", "platform=software", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "system_calls/getppid" in said
    assert "assurance software: SOFTWARE TEE - NOT AMD" in said
    assert command.overhead(["show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "arm plain" in shown
    assert "assurance software" in shown
    made = records.read(out)
    made["arm"] = "snp\x1b[31m"
    records.write(out, made)
    assert command.overhead(["show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "assurance none: its report is refused" in shown
    assert "which is no proof: no sign of memory encryption" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["workload=nope"], "one of attestation"),
        (["repeats=1"], "repeats=1"),
        (["platform=tdx"], "platform=tdx: expected one of auto"),
        (["workloads.system_calls.cals=1"], "workloads.system_calls.cals"),
        (["workloads.system_calls.calls=0"], "workloads.system_calls.calls=0"),
        (["cpus=[]"], "cpus"),
    ],
)
def test_bad_input_is_refused_before_anything_is_timed(tmp_path, capsys, asked, said):
    out = tmp_path / "a.json"
    assert command.overhead(["record", "--out", str(out), *SMALL[:2], *asked]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_isn_t_there_is_refused(tmp_path, capsys):
    assert command.overhead(["record", "--out", str(tmp_path / "no" / "a.json"), *SMALL]) == 2
    assert "out=" in capsys.readouterr().err


def test_a_workload_of_one_s_own_is_one_file_and_one_yaml(tmp_path, monkeypatch, capsys):
    (tmp_path / "mywork.py").write_text(
        "from contextlib import contextmanager\n"
        "from dataclasses import dataclass\n"
        "from privbench.benchmarks.overhead.workloads.workload import Case, Steps\n"
        "@dataclass(frozen=True)\n"
        "class Sum:\n"
        "    numbers: int = 1000\n"
        "    def cases(self, bench):\n"
        "        yield Case('sum', self._open, amount=self.numbers, unit='numbers')\n"
        "    @contextmanager\n"
        "    def _open(self):\n"
        "        yield Steps(lambda: sum(range(self.numbers)))\n"
    )
    folder = tmp_path / "conf" / "workload"
    folder.mkdir(parents=True)
    (folder / "sum.yaml").write_text("# @package workloads.sum\n_target_: mywork.Sum\nnumbers: 100\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "a.json"
    asked = ["workload=[sum]", "repeats=3", "trusted_targets=[mywork]", "-cd", str(tmp_path / "conf")]
    assert command.overhead(["record", "--out", str(out), *asked]) == 0
    (only,) = records.read(out)["measurements"]
    assert (only["workload"], only["work"]) == ("sum", {"amount": 100, "unit": "numbers"})


def test_the_kept_records_are_records():
    folder = Path(__file__).with_name("records")
    kept = [records.read(path) for path in sorted(folder.glob("*.json"))]
    assert len(kept) >= 2
    for one in kept:
        assert one["arm"] == "plain"
        assert proof.proven(one).assurance == "none"
        assert any("no sign of memory encryption" in line for line in showing.lines(one))


def test_help_and_unknown_subcommands(capsys):
    assert command.overhead(["--help"]) == 0
    assert "record" in capsys.readouterr().out
    assert command.overhead(["nope"]) == 2
    with pytest.raises(SystemExit):
        command.overhead(["record", "--help"])
    said = capsys.readouterr().out
    assert "pointer_chase" in said
    assert "repeats: 10" in said
