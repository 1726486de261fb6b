"""``privbench overhead compare``: what may be compared, what is found, and what is never mixed."""

import copy
import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.overhead import compare_table as tables
from privbench.benchmarks.overhead.admit import Incomparable, admit
from privbench.benchmarks.overhead.calibration import Noise, simulate
from privbench.benchmarks.overhead.command import overhead
from privbench.benchmarks.overhead.compare import compare, load
from privbench.benchmarks.overhead.proof import bind
from privbench.benchmarks.overhead.published import PUBLISHED, Range
from privbench.benchmarks.overhead.record import write
from privbench.benchmarks.overhead.recording import _Emulated

AT = datetime(2026, 11, 29, 12, tzinfo=UTC)
Make = Callable[..., dict[str, Any]]
WORKLOADS = ("system_calls/getppid", "training_step/mlp-32", "matrix_product/256")


@pytest.fixture
def arm(make_record: Make) -> Callable[..., list[dict[str, Any]]]:
    """``arm("plain", slow=1.2, boots=6)``: records of simulated boots, one a boot."""

    def make(
        name: str, slow: float = 1.0, boots: int = 6, seed: int = 0, noise: Noise | None = None, **changes: Any
    ) -> list[dict[str, Any]]:
        rng = np.random.default_rng([seed, *name.encode()])
        times = {w: simulate(boots, 10, 1e6 * slow, noise or Noise(0.01, 0.02), rng) for w in WORKLOADS}
        return [
            make_record(
                {w: [round(t) for t in times[w][str(n)]] for w in WORKLOADS}, arm=name, boot=f"{name}-{n}", **changes
            )
            for n in range(boots)
        ]

    return make


def changed(records: list[dict[str, Any]], path: str, value: Any) -> list[dict[str, Any]]:
    """Copies in which the field at ``path`` is ``value``."""
    copies = copy.deepcopy(records)
    for record in copies:
        *parents, last = path.split(".")
        inner = record
        for part in parents:
            inner = inner[part]
        inner[last] = value
    return copies


def test_a_slow_down_is_found_beside_a_null_that_is_none(arm):
    found = compare([*arm("plain"), *arm("again"), *arm("snp", slow=1.2)])
    assert (found.base, found.pair, dict(found.boots)) == (
        "plain",
        ("plain", "again"),
        {"plain": 6, "again": 6, "snp": 6},
    )
    assert [row.arm for row in found.rows] == ["snp"] * 3
    for row in found.rows:
        assert row.verdict == "slower"
        assert row.ratio.holds(1.2)
        assert row.null is not None
        assert not row.null.found
        assert not row.noisy
    assert not any("NOISY" in note for note in found.notes)


def test_times_are_those_of_one_call(arm):
    records = [*arm("plain"), *arm("snp", 1.2)]
    once = compare(records).rows[0].ratio
    for record in records:
        record["measurements"][0]["calls"] = 10
    often = compare(records).rows[0].ratio
    assert often.base == pytest.approx(once.base / 10)
    assert often.value == pytest.approx(once.value)


def test_every_arm_is_compared_with_the_first_or_the_named_one(arm):
    records = [*arm("sev", 1.1), *arm("plain"), *arm("snp", 1.4)]
    found = compare(records, base="plain")
    assert {row.arm for row in found.rows} == {"sev", "snp"}
    assert any(note.startswith("No null") for note in found.notes)
    first = compare(records)
    assert first.base == "sev"
    assert {row.arm: row.verdict for row in first.rows} == {"plain": "faster", "snp": "slower"}


def test_plain_against_plain_alone_is_the_null(arm):
    found = compare([*arm("plain"), *arm("again")])
    assert {row.arm for row in found.rows} == {"again"}
    assert {row.verdict for row in found.rows} <= {"no difference found", "noisy machine"}
    alone, beside = tables.measured(found), tables.measured(compare([*arm("plain"), *arm("again"), *arm("snp", 1.2)]))
    assert alone is not None
    assert beside is not None
    assert "null ratio" not in alone.headers
    assert "null ratio" in beside.headers


def test_the_null_is_plain_against_plain_whatever_the_base(arm):
    records = [*arm("sev", 1.3), *arm("plain"), *arm("again"), *arm("snp", 1.5)]
    found = compare(records)
    assert (found.base, found.pair) == ("sev", ("plain", "again"))
    assert {row.arm for row in found.rows} == {"plain", "snp"}
    assert not any(row.noisy for row in found.rows)
    found = compare(records, base="again")
    assert found.pair == ("again", "plain")
    assert {row.arm for row in found.rows} == {"sev", "snp"}
    named = compare([*arm("mine"), *arm("mine_too"), *arm("sev", 1.3)], null="mine_too")
    assert named.pair == ("mine", "mine_too")


@pytest.mark.parametrize("base", ["again", "sev"])
def test_what_has_no_twin_has_no_null(arm, base):
    found = compare([*arm("again"), *arm("sev", 1.3)], base=base)
    assert found.pair is None
    assert all(row.null is None for row in found.rows)
    assert any(note.startswith("No null") for note in found.notes)


def test_a_record_given_twice_counts_once(arm):
    plain, slow = arm("plain"), arm("sev", 1.3)
    once, twice = compare([*plain, *slow], cluster="record"), compare([*plain, *slow, *plain, *plain], cluster="record")
    assert [row.ratio for row in once.rows] == [row.ratio for row in twice.rows]
    attested = [
        {**record, "evidence": {"platform": "sev_snp", "report": "AA==", "certificates": []}} for record in plain
    ]
    for both in ([*plain, *attested], [*attested, *plain]):
        said = compare([*both, *slow], cluster="record").notes
        assert any(note.startswith("plain: not proven") and "no report" not in note for note in said), "it has one"
    assert f"{2 * len(plain)} records were given more than once, and count once." in twice.notes


def test_a_noisy_machine_is_said_to_be_noisy(arm):
    noise = Noise(boot=0.2, repeat=0.05)
    found = compare([*arm("plain", noise=noise), *arm("again", noise=noise), *arm("snp", 1.05, noise=noise)])
    said = next(note for note in found.notes if note.startswith("NOISY MACHINE"))
    assert "3 of 3 workloads" in said
    assert all(row.noisy for row in found.rows)
    drifted = compare([*arm("plain"), *arm("again", 1.3), *arm("snp", 1.3)])
    assert {row.verdict for row in drifted.rows} == {"noisy machine"}


def test_a_difference_that_the_null_has_as_well_is_not_called_one(arm):
    loud, quiet = Noise(0.05, 0.02), Noise(0.001, 0.001)
    found = compare([*arm("plain", noise=quiet), *arm("again", noise=loud), *arm("snp", 1.01, noise=quiet)])
    rows = [row for row in found.rows if row.null is not None and row.null.holds(row.ratio.value) and row.ratio.found]
    assert rows
    assert {row.verdict for row in rows} == {"within the null"}


def test_few_boots_say_how_little_they_tell(arm):
    found = compare([*arm("plain", boots=2), *arm("again", boots=2), *arm("snp", 2.0, boots=2)])
    assert {row.verdict for row in found.rows} == {"too few boots"}
    assert any(note.startswith("Few boots (plain 2, again 2, snp 2)") for note in found.notes)


def test_records_of_one_boot_are_one_boot(arm):
    records = [changed(arm(name), "boot", "one") for name in ("plain", "again")]
    together = [r for some in records for r in some]
    assert {row.verdict for row in compare(together).rows} == {"too few boots"}
    found = compare(together, cluster="record")
    assert all(row.ratio.low is not None for row in found.rows)
    assert any(note.startswith("Clustered by record") for note in found.notes)
    assert any(note.startswith("Arms share a boot") for note in found.notes)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("machine.cpu.model_name", "AMD EPYC 9654", "machine.cpu.model_name: plain has AMD EPYC 7763"),
        ("machine.cpu.microcode", "0xa0011d6", "machine.cpu.microcode"),
        ("machine.cpu.governor", "powersave", "machine.cpu.governor: plain has null; snp has powersave"),
        ("machine.cpu.flags", ["aes", "avx2", "avx512f"], "machine.cpu.flags"),
        ("machine.cpu.mitigations", {"spectre_v2": "Vulnerable"}, "machine.cpu.mitigations.spectre_v2"),
        ("machine.kernel.release", "6.11.0", "machine.kernel.release"),
        ("machine.kernel.command_line", "root=/dev/vda1 ro mitigations=off", "machine.kernel.command_line"),
        ("machine.memory.transparent_huge_pages", "always", "machine.memory.transparent_huge_pages"),
        ("machine.memory.total_bytes", 8388608000, "machine.memory.total_bytes"),
        ("machine.place.cpus_allowed", [0, 1], "machine.place.cpus_allowed"),
        ("packages.torch", "2.14.0", "packages.torch: plain has 2.15.0; snp has 2.14.0"),
        ("packages", {"numpy": "2.4.6"}, "packages.torch: plain has 2.15.0; snp has absent"),
        ("stop_rule.repeats", 30, "stop_rule.repeats"),
        ("set", "default", "set: plain has quick; snp has default"),
    ],
)
def test_machines_packages_and_settings_that_differ_are_refused_by_name(arm, path, value, said):
    with pytest.raises(Incomparable) as refused:
        compare([*arm("plain"), *changed(arm("snp"), path, value)])
    assert said in str(refused.value)


def test_one_boot_of_an_arm_that_differs_is_refused_too(arm):
    plain = arm("plain")
    plain[3:4] = changed(plain[3:4], "packages.torch", "2.14.0")
    with pytest.raises(Incomparable, match=r"plain has 2\.15\.0 and 2\.14\.0; snp has 2\.15\.0"):
        compare([*plain, *arm("snp")])


def test_workloads_that_differ_are_refused(arm):
    snp = arm("snp")
    for record in snp:
        record["measurements"][1]["settings"] = {"batch": 64}
    with pytest.raises(Incomparable, match=r"workloads\.training_step/mlp-32\.settings: plain has \{\}; snp has"):
        compare([*arm("plain"), *snp])
    fewer = arm("snp")
    for record in fewer:
        del record["measurements"][0]
    with pytest.raises(Incomparable) as refused:
        compare([*arm("plain"), *fewer])
    assert refused.value.faults == ("measured.system_calls/getppid: plain has taken; snp has absent",)
    found = compare([*arm("plain"), *fewer], allow=["measured"])
    assert {row.workload for row in found.rows} == set(WORKLOADS[1:])


def test_what_comes_with_the_protection_is_noted_and_not_refused(arm):
    snp = changed(arm("snp", 1.2), "machine.kernel.clocksource", "tsc")
    snp = changed(snp, "machine.memory.total_bytes", 16000000000)
    snp = changed(snp, "machine.cpu.flags", ["aes", "avx2"])
    snp = changed(snp, "machine.kernel.swiotlb_bytes", 1073741824)
    snp = changed(snp, "machine.kernel.command_line", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro swiotlb=force")
    found = compare([*arm("plain"), *snp])
    assert "may differ with the protection: machine.memory.total_bytes, by up to 4.9%" in found.notes
    assert "may differ with the protection: machine.kernel.clocksource, kvm-clock, tsc" in found.notes


def test_what_is_allowed_by_name_is_noted(arm):
    records = [*arm("plain"), *changed(arm("snp"), "machine.kernel.release", "6.11.0")]
    found = compare(records, allow=["machine.kernel.release"])
    assert any(n.startswith("allowed to differ: machine.kernel.release: plain has 6.8.0") for n in found.notes)
    assert compare(records, allow=["machine.kernel"]).notes == found.notes
    with pytest.raises(Incomparable, match=r"machine\.kernel\.release"):
        compare(records, allow=["packages"])
    with pytest.raises(ConfigError, match=r"allow=machine\.kernal"):
        compare(records, allow=["machine.kernal"])


def test_equal_records_differ_in_nothing(arm):
    assert admit({"plain": arm("plain"), "snp": arm("snp")}) == []


def emulated(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same records with reports of a software TEE over them."""
    platform: Any = _Emulated()
    return [bind(record, platform) for record in records]


def test_a_software_tee_cannot_enter_a_hardware_table(arm):
    plain, snp = arm("plain"), arm("snp", 1.2)
    with pytest.raises(Incomparable, match="snp: its records carry reports of a software TEE"):
        compare([*plain, *emulated(snp)])
    one = [*snp[:5], *emulated(snp[5:])]
    with pytest.raises(Incomparable, match="software TEE"):
        compare([*plain, *one])


def test_what_a_record_says_of_its_platform_changes_nothing(arm):
    posing = emulated(arm("snp", 1.2))
    for record in posing:
        record["evidence"]["platform"] = "sev_snp"
    with pytest.raises(Incomparable, match="software TEE"):
        compare([*arm("plain"), *posing])


def test_rounds_of_an_emulated_tee_have_a_table_of_their_own(arm, tmp_path):
    from privbench.benchmarks.overhead.workloads.federated_round import EMULATED

    records = [*arm("plain"), *arm("snp", 1.2)]
    for record in records:
        record["measurements"][1] |= {"workload": "federated_round", "case": "tee", "doubts": [EMULATED]}
    found = compare(records)
    hardware, software = tables.measured(found), tables.emulated(found)
    assert hardware is not None
    assert software is not None
    assert [row[0] for row in software.rows] == ["federated_round/tee"]
    assert "tee" not in hardware.text()
    assert not any("SOFTWARE TEE" in note for note in hardware.notes)
    assert "SOFTWARE TEE" in software.notes[0]
    projected = tables.projection(found)
    assert projected is None or "federated_round/tee" not in projected.text()
    alone = [{**r, "measurements": r["measurements"][1:2]} for r in records]
    assert tables.measured(compare(alone)) is None


def test_a_report_over_another_record_proves_nothing(arm):
    altered = emulated(arm("snp"))
    for record in altered:
        record["measurements"][0]["wall_ns"] = [w // 2 for w in record["measurements"][0]["wall_ns"]]
    found = compare([*arm("plain"), *altered], at=AT)
    assert found.standing["snp"].assurance == "none"
    assert any(note.startswith("snp: not proven: its report is refused") for note in found.notes)


def test_a_claim_is_shown_as_a_claim(arm):
    sign = {"name": "MSR", "strength": "register", "found": True, "says": "SEV, SEV-ES, SEV-SNP (0x7)"}
    found = compare([*arm("plain"), *arm("snp", signs=[sign])])
    said = next(note for note in found.notes if note.startswith("snp:"))
    assert said == "snp: not proven: no report came with it. The kernel's own word: SEV, SEV-ES, SEV-SNP (0x7)."


def test_a_base_that_is_protected_itself_is_said_to_be(arm):
    sign = {"name": "MSR", "strength": "register", "found": True, "says": "SEV (0x1)"}
    found = compare([*arm("plain", signs=[sign]), *arm("snp")])
    assert any(note.startswith("plain shows signs of protection itself: SEV (0x1)") for note in found.notes)


def test_arms_taken_one_after_the_other_are_said_to_be(arm):
    def taken(records, hours):
        return [{**r, "created": f"2026-11-29T{h:02}:00:00+00:00"} for r, h in zip(records, hours, strict=True)]

    plain = taken(arm("plain"), (1, 4, 5, 8, 9, 12))
    between = compare([*plain, *taken(arm("snp"), (2, 3, 6, 7, 10, 11))])
    assert not any(note.startswith("NOT INTERLEAVED") for note in between.notes)
    after = compare([*plain, *taken(arm("snp"), range(13, 19)), *taken(arm("sev"), (2, 3, 6, 7, 10, 11))])
    assert any(note.startswith("NOT INTERLEAVED: snp and plain") for note in after.notes)


def test_records_taken_on_a_real_machine_compare(capsys):
    folder = Path(__file__).parent / "records"
    first, second = load([folder / "plain_a.json"]), load([folder / "plain_b.json"])
    found = compare([*first, *({**r, "arm": "again"} for r in second)])
    assert {row.verdict for row in found.rows} == {"too few boots"}
    assert all(0.01 < row.ratio.value < 100 for row in found.rows)
    assert overhead(["compare", str(folder)]) == 2
    assert "records=plain: of two arms or more" in capsys.readouterr().err


def test_a_gpu_s_state_is_noted_and_not_compared(arm):
    def with_gpu(records, feature, driver="570.133.20"):
        gpu = {"name": "NVIDIA H100", "driver": driver, "memory_bytes": 80 * 2**30, "feature": feature}
        return changed(records, "machine.gpus", [gpu])

    off = with_gpu(arm("plain"), "off")
    found = compare([*off, *with_gpu(arm("gpu_cc", 1.05), "on")])
    assert any(n.startswith("gpu_cc:") and n.endswith("confidential computing: NVIDIA H100: on.") for n in found.notes)
    with pytest.raises(Incomparable, match=r"machine\.gpus"):
        compare([*off, *with_gpu(arm("gpu_cc"), "on", driver="580.1")])


def test_published_ranges_never_stand_among_measurements(arm):
    found = compare([*arm("plain"), *arm("again"), *arm("snp", 1.2)])
    table = tables.measured(found)
    assert table is not None
    sources = {r.source.split(",")[0] for r in PUBLISHED}
    assert not any(source in table.text() for source in sources)
    projected = tables.projection(found)
    assert projected is not None
    assert "PROJECTED, NOT MEASURED" in projected.text()
    assert "ratio" not in projected.records[0]
    assert not any("snp" in str(cell) for row in projected.rows for cell in row)
    step = next(
        r for r in projected.records if r["workload"] == "training_step/mlp-32" and "Casella" in str(r["source"])
    )
    plain = next(row.ratio.base for row in found.rows if row.workload == "training_step/mlp-32")
    assert step["projected_low_ns"] == pytest.approx(1.126 * plain)
    assert "FROM THE LITERATURE" in tables.literature().text()


def test_ranges_have_both_ends_in_order():
    assert any(r.low is None for r in PUBLISHED)
    assert not any(r.fits("system_calls/getppid") for r in PUBLISHED)
    for low, high in ((1.2, 1.1), (0.9, 1.1), (1.1, None)):
        with pytest.raises(ConfigError, match="low, high"):
            Range("a", "b", low, high, "c")


def test_doubts_are_said_once_with_their_largest_share(arm):
    snp = arm("snp", 1.2)
    for n, record in enumerate(snp):
        record["measurements"][0]["doubts"] = [f"other processes took {20 + n}% of the machine"]
    table = tables.measured(compare([*arm("plain"), *snp]))
    assert table is not None
    assert "* other processes took up to 25% of the machine: system_calls/getppid." in table.notes
    assert [row[-1].endswith("*") for row in table.rows] == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "tdx"}, "base=tdx"),
        ({"level": 1.0}, "level=1.0"),
        ({"level": 0.3}, "level=0.3"),
        ({"seed": -1}, "seed=-1"),
        ({"null": "plain"}, "null=plain: another arm than the base"),
    ],
)
def test_bad_settings_name_the_field(arm, changes, said):
    with pytest.raises(ConfigError, match=said):
        compare([*arm("plain"), *arm("snp")], **changes)
    with pytest.raises(ConfigError, match="records=plain: of two arms or more"):
        compare(arm("plain"))


@pytest.fixture
def folder(arm, tmp_path):
    for name, slow in (("plain", 1.0), ("again", 1.0), ("snp", 1.2)):
        (tmp_path / name).mkdir()
        for n, record in enumerate(arm(name, slow)):
            write(tmp_path / name / f"{n}.json", record)
    return tmp_path


def run(folder: Path, *more: str) -> int:
    return overhead(["compare", *(str(folder / name) for name in ("plain", "again", "snp")), *more])


def test_the_command_writes_tables_json_and_a_figure(folder, capsys):
    assert run(folder, "--out", str(folder / "out")) == 0
    said = capsys.readouterr().out
    assert "slower" in said
    written = {p.name for p in (folder / "out").iterdir()}
    names = ("measured", "literature", "projection")
    assert written == {f"{n}.{s}" for n in names for s in ("txt", "csv", "tex")} | {
        "comparison.json",
        "comparison.png",
        "comparison.pdf",
    }
    whole = json.loads((folder / "out/comparison.json").read_text())
    rows = list(csv.DictReader((folder / "out/measured.csv").read_text().splitlines()))
    assert [float(r["ratio"]) for r in rows] == [r["ratio"] for r in whole["rows"]]
    assert whole["schema"] == "privbench overhead comparison 2"
    assert r"\begin{tabular}" in (folder / "out/measured.tex").read_text()
    assert run(folder, "--out", str(folder / "twice")) == 0
    for name in ("comparison.png", "comparison.json", "measured.txt"):
        assert (folder / "out" / name).read_bytes() == (folder / "twice" / name).read_bytes()


def test_the_command_refuses_and_says_why(folder, capsys):
    record = json.loads((folder / "snp/0.json").read_text())
    record["packages"]["torch"] = "2.14.0"
    write(folder / "snp/0.json", record)
    assert run(folder) == 1
    assert "packages.torch: plain, again have 2.15.0; snp has 2.14.0 and 2.15.0" in capsys.readouterr().err
    assert run(folder, "--allow", "packages.torch") == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nowhere.json"], "record=nowhere.json"),
        (["--at", "yesterday", "RECORDS"], "at=yesterday"),
        (["--at", "2026-01-01", "RECORDS"], "at=2026-01-01"),
        (["--level", "2", "RECORDS"], "level=2.0"),
        (["--seed", "-1", "RECORDS"], "seed=-1"),
        (["RECORDS", "--out", "/dev/null/x"], "Not a directory"),
    ],
)
def test_the_command_names_bad_input(folder, given, said, capsys):
    words = [
        part
        for word in given
        for part in ([str(folder / "plain"), str(folder / "snp")] if word == "RECORDS" else [word])
    ]
    assert overhead(["compare", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(ConfigError, match="a record, or a folder with records"):
        load([tmp_path])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match="its schema is None"):
        load([tmp_path])


def test_the_figure_keeps_the_literature_to_its_own_panel(arm, tmp_path, monkeypatch):
    from privbench.benchmarks.overhead import compare_figure

    kept = []
    monkeypatch.setattr(compare_figure, "save", lambda figure, stem: kept.append(figure) or [])
    compare_figure.draw(compare([*arm("plain"), *arm("again"), *arm("snp", 1.2), *arm("sev", 1.1)]), tmp_path / "x")
    above, below = kept[0].axes
    assert above.get_title(loc="left") == "Measured, 95% intervals over boots"
    assert below.get_title(loc="left") == "Ranges from the literature, not measured here"
    assert [t.get_text() for t in above.get_yticklabels()] == list(WORKLOADS)
    assert len(above.containers) >= 6  # an interval for each workload and arm
    assert len(below.get_yticklabels()) == sum(r.low is not None for r in PUBLISHED)
    assert all(patch.get_hatch() for patch in below.patches)
