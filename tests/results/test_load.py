import json
from pathlib import Path

import pandas as pd
import pytest

from privbench.benchmarks.results import read
from privbench.benchmarks.results.load import Refused, load
from privbench.benchmarks.results.read import MalformedError


def edit(run: Path, **fields):
    file = run / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(run: Path, keep):
    """Replace the lines of ``metrics.jsonl`` by those of ``keep(line)`` that are not None."""
    file = run / "metrics.jsonl"
    lines = [keep(json.loads(text)) for text in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(found) + "\n" for found in lines if found is not None))


def test_a_run_a_sweep_and_a_root_load(fake):
    first, second = fake.run("none"), fake.run("dp_local")
    sweep = fake.sweep(first)
    assert [r.id for r in load(first).runs] == [first.name]
    assert [r.id for r in load(sweep).runs] == [first.name]
    assert {r.id for r in load(fake.root).runs} == {first.name, second.name}
    assert (load(first).kind, load(sweep).kind, load(fake.root).kind) == ("run", "sweep", "root")


def test_what_is_no_result_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run"):
        load(tmp_path)


def test_the_accessors_of_a_run(fake):
    run = load(fake.run("dp_local", "patch", seed=2, rounds=3, leakage=12.0)).runs[0]
    assert (run.label, run.seed, run.status, run.poisoned) == ("dp_local / patch", 2, "complete", True)
    assert list(run.series("asr")) == [1, 2, 3]
    assert run.final("asr") == run.series("asr")[3]
    assert run.final("auc") == pytest.approx(run.series("accuracy")[3] + 0.05)
    assert run.final("psnr_db") is None
    assert run.final("psnr_db", "server_operator") == 12.5  # two victims, 12 and 13 dB
    assert run.final("nothing") is None
    assert run.chance == 0.1


def test_a_metric_chance_goes_before_the_number_of_classes(fake):
    path = fake.run()
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"metric": "chance", "value": 0.4}) + "\n")
    assert load(path).runs[0].chance == 0.4


def test_one_failed_victim_leaves_no_mean(fake):
    def fail(line):
        failed = line["metric"] == "psnr_db" and line["client"] == 1
        return line | {"value": None, "status": "failed"} if failed else line

    path = fake.run()
    rewrite(path, fail)
    assert load(path).runs[0].mean("psnr_db", "server_operator") == ("failed", None)


@pytest.mark.parametrize("status", ["not_applicable", "failed", "skipped"])
def test_the_state_of_leakage_without_a_number(fake, status):
    arm = load(fake.run(leakage=status)).arms()[0]
    assert arm.leakage("psnr_db", "server_operator").state == status
    assert arm.leakage("psnr_db", "server_operator").mean is None


def test_an_attack_that_failed_for_one_seed_leaves_the_arm_without_a_mean(fake):
    fake.run(seed=0, leakage=20.0)
    fake.run(seed=1, leakage="failed")
    found = load(fake.root).aggregate("psnr_db", "server_operator").iloc[0]
    assert found["state"] == "failed"
    assert pd.isna(found["mean"])


def test_nan_is_not_a_number_to_average(fake):
    path = fake.run()
    rewrite(path, lambda found: found | {"value": float("nan")} if found["metric"] == "accuracy" else found)
    assert load(path).arms()[0].final("accuracy").state == "failed"


def test_half_a_line_is_tolerated_in_a_running_run_only(fake):
    path = fake.run()
    whole = len(load(path).runs[0].metrics)
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"metric": "accur')
    with pytest.raises(MalformedError, match=rf"metrics.jsonl:{whole + 1}: not JSON"):
        load(path)
    edit(path, status="running")
    assert len(load(path).runs[0].metrics) == whole


def test_half_a_line_in_the_middle_is_never_tolerated(fake):
    path = fake.run(status="running")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]))
    with pytest.raises(MalformedError, match=r"metrics.jsonl:2: not JSON"):
        load(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"metric": "accuracy"}', "'metric' and 'value'"),
        ('{"metric": "accuracy", "value": "0.5"}', "neither a number nor null"),
        ('{"metric": "accuracy", "value": 1, "round": "1"}', "round '1' is no int"),
        ("[]", "expected an object"),
        ("", "not JSON"),
    ],
)
def test_a_malformed_metric_names_file_and_line(fake, text, problem):
    path = fake.run()
    (path / "metrics.jsonl").write_text(f'{{"metric": "a", "value": 1}}\n{text}\n{{"metric": "b", "value": 1}}\n')
    with pytest.raises(MalformedError, match=f"metrics.jsonl:2: .*{problem}"):
        load(path)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"schema": 2}, "schema 2"),
        ({"status": "done"}, "status 'done'"),
        ({"revision": {"commit": None}}, "'revision' has neither"),
        ({"seed": "0"}, "'seed' is a str"),
        ({"privacy": [{"unit": "record", "adversary": "network"}]}, "'epsilon'"),
        ({"privacy": [{"unit": "record", "adversary": "network", "epsilon": -1}]}, "epsilon -1"),
    ],
)
def test_a_malformed_manifest_names_the_file(fake, fields, problem):
    path = fake.run()
    edit(path, **fields)
    with pytest.raises(MalformedError, match=rf"manifest.json:1: .*{problem}"):
        load(path)


def test_a_broken_manifest_names_the_line(fake):
    path = fake.run()
    (path / "manifest.json").write_text('{\n "schema": 1,\n "id"\n}')
    with pytest.raises(MalformedError, match=r"manifest.json:4: not JSON"):
        load(path)


def test_the_frame_is_tidy(fake):
    fake.run("none", rounds=3)
    fake.run("dp_local", rounds=3, status="failed")
    frame = load(fake.root).frame()
    accuracy = frame[frame.metric == "accuracy"]
    assert accuracy.groupby("label").size().to_dict() == {"none": 3, "dp_local": 3}
    assert set(accuracy.run_status) == {"complete", "failed"}
    assert pd.api.types.is_float_dtype(frame["value"])
    assert frame[frame.metric == "psnr_db"].client.tolist() == [0, 1, 0, 1]


def test_seeds_are_averaged_with_a_t_interval(fake):
    for seed in (0, 1, 2):
        fake.run(seed=seed)
    found = load(fake.root).aggregate("false_trigger_rate").iloc[0]
    assert found["mean"] == pytest.approx(0.021)
    assert found["half_width"] == pytest.approx(4.302653 * 0.001 / 3**0.5)  # t(0.975, 2 degrees of freedom)


def test_one_seed_has_no_interval(fake):
    fake.run()
    assert load(fake.root).aggregate("accuracy").half_width.isna().all()


@pytest.mark.parametrize("status", ["failed", "diverged", "running"])
def test_an_arm_with_a_bad_run_is_refused_and_never_averaged_over_survivors(fake, status):
    bad = fake.run("dp_local", seed=1, status=status, error="out of memory")
    for defense, seed in (("dp_local", 0), ("none", 0), ("none", 1)):
        fake.run(defense, seed=seed)
    results = load(fake.root)
    with pytest.raises(Refused, match=rf"dp_local: 1 of 2 runs {status}: out of memory \({bad.name}\)"):
        results.aggregate("accuracy")
    kept, refused = results.split()
    assert [a.label for a in kept.arms()] == ["none"]
    assert [r.runs for r in refused] == [(bad.name,)]


def test_seeds_missing_in_one_arm_are_refused_with_the_ids_of_the_missing_runs(fake):
    for seed in (0, 1, 2):
        fake.run("none", seed=seed)
    there = fake.run("dp_local", seed=0)
    lost = there.name.removesuffix("0")
    with pytest.raises(Refused, match=rf"seeds \[1, 2\] are missing.*{lost}1, {lost}2"):
        load(fake.root).arms()


def test_arms_of_another_setup_need_not_have_the_same_seeds(fake):
    fake.run(seed=0)
    fake.run(seed=0, task="other")
    fake.run(seed=1, task="other")
    arms = load(fake.root).arms()
    assert {(a.label, a.n) for a in arms} == {("none, mnist5k", 1), ("none, other", 2)}
    assert {name for name, _ in load(fake.root).setups()} == {"mnist5k", "other"}


def test_a_run_that_the_sweep_names_and_that_is_not_there_is_refused(fake):
    here = fake.run(seed=0)
    lost = here.name.removesuffix("0") + "1"
    other = "0123456789ab-s0"
    more = [
        {"path": f"../runs/{i}", "id": i, "overrides": ["defense=krum"], "status": "pending"} for i in (lost, other)
    ]
    kept, refused = load(fake.sweep(here, more=tuple(more))).split()
    assert kept.runs == ()
    assert {(r.label, r.runs) for r in refused} == {("none", (lost,)), ("defense=krum", (other,))}


def test_mixed_revisions_are_refused_unless_asked_and_then_labelled(fake):
    old = fake.run("dp_local", revision={"commit": "b" * 40, "dirty": False})
    fake.run("none")
    fake.run("krum")
    with pytest.raises(Refused, match=rf"dp_local: mixed revisions: revision bbbbbbbbbb.*\({old.name}\)"):
        load(fake.root).arms()
    labels = {a.label for a in load(fake.root, mixed_revisions=True).arms()}
    assert labels == {
        "dp_local, revision bbbbbbbbbb",
        "none, revision aaaaaaaaaa",
        "krum, revision aaaaaaaaaa",
    }


def test_uncommitted_changes_are_another_revision(fake):
    fake.run("none")
    fake.run("krum")
    fake.run("dp_local", revision={"commit": "a" * 40, "dirty": True})
    with pytest.raises(Refused, match=r"revision aaaaaaaaaa\+"):
        load(fake.root).arms()


def test_two_sets_of_uncommitted_changes_are_two_revisions(fake):
    for defense, diff in (("none", "1" * 12), ("krum", "1" * 12), ("dp_local", "2" * 12)):
        fake.run(defense, revision={"commit": "a" * 40, "dirty": True, "diff": diff})
    with pytest.raises(Refused, match=r"dp_local: .*revision aaaaaaaaaa\+222222, most runs have aaaaaaaaaa\+111111"):
        load(fake.root).arms()


def test_an_installed_package_is_labelled_by_its_version(fake):
    for defense, version in (("none", "0.1.0"), ("krum", "0.1.0"), ("dp_local", "0.2.0")):
        fake.run(defense, revision={"commit": None, "version": version, "dirty": False})
    with pytest.raises(Refused, match=r"dp_local: .*revision 0\.2\.0, most runs have 0\.1\.0"):
        load(fake.root).arms()


def evidence(monkeypatch: pytest.MonkeyPatch, **shown: str) -> None:
    """Let the evidence of a run, by the end of its name, show this; ``tests/test_run.py`` has real evidence."""
    monkeypatch.setattr(read, "_shown", lambda path, _: shown.get(path.name.rpartition("-")[2], "none"))


def test_a_software_tee_is_labelled_and_not_averaged_with_anything_else(fake, monkeypatch):
    evidence(monkeypatch, s0="software")
    fake.run("attested", seed=0, assurance="software")
    assert load(fake.root).arms()[0].label == "attested, software TEE"
    fake.run("attested", seed=1, assurance="none")
    with pytest.raises(Refused, match="mixed assurance: none and software in one arm"):
        load(fake.root).arms()


@pytest.mark.parametrize("claim", ["software", "hardware", "custom"])
def test_a_claim_without_evidence_is_refused(fake, claim):
    run = fake.run("attested", assurance=claim)
    with pytest.raises(Refused, match=rf"assurance {claim} is claimed, its evidence shows none.*{run.name}"):
        load(fake.root).arms()


def test_a_software_tee_can_not_be_passed_off_as_hardware(fake, monkeypatch):
    evidence(monkeypatch, s0="software")
    run = fake.run("attested", assurance="hardware")
    with pytest.raises(Refused, match=rf"a software TEE passed off as hardware.*{run.name}"):
        load(fake.root).arms()


def test_an_attested_defense_without_evidence_is_refused(fake):
    channel = {"_target_": "privbench.defenses.channel.Attested"}
    run = fake.run("tee", config={"defense": {"channel": channel}})
    with pytest.raises(Refused, match=rf"attests its aggregator, and there is no evidence that holds.*{run.name}"):
        load(fake.root).arms()


def test_one_seed_twice_is_refused(fake):
    run = fake.run()
    copy = run.with_name("000000000000-s0")
    run.rename(copy)
    edit(copy, id=copy.name)
    fake.run()
    with pytest.raises(Refused, match=r"seeds \[0\] more than once"):
        load(fake.root).arms()


def test_differing_settings_tell_arms_apart_where_choices_coincide(fake):
    for epsilon in (1.0, 8.0):
        fake.run("dp_local", settings={"defense.privacy.epsilon": epsilon, "defense.privacy.clip": 1.0})
    fake.run("none")
    assert {a.label for a in load(fake.root).arms()} == {"dp_local, epsilon=1", "dp_local, epsilon=8", "none"}


def test_a_setting_at_its_default_is_named_by_its_value(fake):
    fake.run("tee", config={"federation": {"participation": 1.0}})
    fake.run("tee", settings={"federation.participation": 0.5})
    assert {a.label for a in load(fake.root).arms()} == {"tee, participation=1", "tee, participation=0.5"}


def test_a_root_is_ordered_by_defense_and_settings_and_not_by_hash(fake):
    for epsilon in (16.0, 2.0, 1.0):
        fake.run("dp_local", settings={"defense.epsilon": epsilon})
    fake.run("none")
    labels = [a.label for a in load(fake.root).arms()]
    assert labels == ["none", "dp_local, epsilon=1", "dp_local, epsilon=2", "dp_local, epsilon=16"]


def test_the_twin_has_the_same_settings_and_seed_without_the_poisoner(fake):
    poisoned = fake.run("krum", "patch", seed=1)
    twin = fake.run("krum", seed=1)
    fake.run("krum", seed=0)
    fake.run("none", seed=1)
    results = load(fake.root)
    run = next(r for r in results.runs if r.id == poisoned.name)
    found = results.twin(run)
    assert found is not None
    assert found.id == twin.name
    edit(twin, status="failed")
    assert load(fake.root).twin(run) is None
