"""Records: what is refused, and what their digest covers."""

import copy
import hashlib
import json
from pathlib import Path

import pytest

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.overhead import record as records
from privbench.benchmarks.overhead import showing


def test_a_record_is_read_as_it_was_written(make_record, tmp_path: Path):
    made = make_record()
    records.write(tmp_path / "a.json", made)
    assert records.read(tmp_path / "a.json") == made
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "privbench overhead record 99"}, "record 99"),
        ({"measurements": []}, "measurements"),
        ({"arm": ""}, "arm"),
        ({"load": None}, "load"),
        ({"created": "yesterday"}, "created: yesterday is no time"),
        ({"created": "2026-01-31T12:00:00"}, "created: .* is no time with its offset"),
        ({"extra": 1}, "extra"),
    ],
)
def test_what_is_no_record_is_refused_by_name(make_record, tmp_path: Path, change, said):
    (tmp_path / "a.json").write_text(json.dumps(make_record(**change)))
    with pytest.raises(ConfigError, match=said):
        records.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wall_ns": [1, 2]}, "equally long"),
        ({"status": "unavailable"}, "unavailable with 3 repeats"),
        ({"wall_ns": [], "cpu_ns": [], "start_ns": []}, "measured with 0 repeats"),
        ({"wall_ns": [5, 0, 5]}, "took no time"),
        ({"wall_ns": [5, -1, 5]}, "wall_ns"),
    ],
)
def test_times_that_contradict_themselves_are_refused(make_record, change, said):
    made = make_record()
    made["measurements"][0].update(change)
    with pytest.raises(ConfigError, match=said):
        records.check(made, "made")


def test_text_without_a_canonical_form_is_refused(make_record):
    with pytest.raises(ConfigError, match="no canonical form"):
        records.check(make_record(arm="half a pair \ud800"), "made")


def test_a_single_repeat_and_one_beyond_the_clock_are_no_traceback(make_record):
    single = make_record({"a/b": [1_500]})
    records.check(single, "made")
    assert any(line.startswith("a/b") and "1.500 us" in line for line in showing.lines(single))
    with pytest.raises(ConfigError, match="no canonical form"):
        records.check(make_record({"a/b": [2**60]}), "made")


def test_one_measurement_twice_is_refused(make_record):
    made = make_record()
    made["measurements"].append(copy.deepcopy(made["measurements"][0]))
    with pytest.raises(ConfigError, match="syscalls/getppid: comes twice"):
        records.check(made, "made")
    made["measurements"][-1]["ablation"] = "bounce buffer"
    records.check(made, "made")


@pytest.mark.parametrize("raw", ['{"schema": NaN}', "[]", "{", '{"schema": 1, "schema": 2}', ""])
def test_what_is_no_json_object_is_refused(tmp_path: Path, raw):
    (tmp_path / "a.json").write_text(raw)
    with pytest.raises(ConfigError, match="record="):
        records.read(tmp_path / "a.json")


def test_the_digest_is_that_of_all_but_the_evidence(make_record):
    made = make_record()
    # RFC 8785 writes a whole float as an integer; for the rest of such a record it is sorted JSON without white space.
    made["stop_rule"]["seconds"], made["load"]["steal"] = 10, 0
    for one in made["measurements"]:
        one["load"]["steal"] = 0
    plain = json.dumps({k: v for k, v in made.items() if k != "evidence"}, sort_keys=True, separators=(",", ":"))
    assert records.digest(made) == hashlib.sha512(plain.encode()).digest()
    attested = {**made, "evidence": {"platform": "sev_snp", "report": "AA==", "certificates": []}}
    assert records.digest(attested) == records.digest(made)


@pytest.mark.parametrize("field", ["created", "arm", "boot", "set", "packages", "signs", "measurements", "machine"])
def test_every_field_changes_the_digest(make_record, field):
    made, other = make_record(), make_record()
    other[field] = make_record({"x/y": [1]})["measurements"] if field == "measurements" else "other"
    assert records.digest(made) != records.digest(other)
