"""Every YAML in conf/ composes and builds."""

from importlib.resources import files
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from privbench.benchmarks import experiment, sweep
from privbench.benchmarks.tasks.sources import DataMissing

CONF = Path(str(files("privbench.conf")))
OPTIONS = sorted(
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.relative_to(CONF).parts[0] not in ("experiment", "arm", "overhead")
)
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("") for path in CONF.glob("experiment/**/*.yaml")
)


@pytest.fixture
def hydra():
    with initialize_config_module("privbench.conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(hydra, option):
    # A schedule is a poisoner's.
    poisoner = ["poisoning=backdoor"] if option.startswith("poisoning/") else []
    config = compose("config", overrides=[*poisoner, option, "name=x"])
    group, _, choice = option.partition("=")
    built = experiment.compose(sweep.plain(config))
    found = built
    for part in group.split("/"):
        found = getattr(found, part)
    assert (found is None) == (choice == "none" and group in ("leakage", "poisoning", "inference"))


SOME = {
    "attacks_by_rules": "defense=none,multi_krum,bulyan",
    "backdoor_matrix": "defense=none,multi_krum,dp_local",
    "defense_cost": "+arm/defense_cost=small_cnn",
    "dp_frontier": "+arm/dp_frontier=uci_heart,mnist5k_backdoor",
    "paper/carlini2022_contrastive": "poisoning.records=0,8",
    "paper/naseri2022_dp_backdoors": "defense=none,dp_local,dp_central",
}
"""Of these products, which take seconds: each option is built above, and `slow` tests make all."""


@pytest.mark.parametrize(
    ("name", "some"),
    [
        *(pytest.param(n, SOME.get(str(n), ""), id=str(n)) for n in EXPERIMENTS),
        *(pytest.param(n, "", id=f"{n}, all", marks=pytest.mark.slow) for n in EXPERIMENTS if str(n) in SOME),
    ],
)
def test_every_experiment_is_checked_job_by_job(name, some, tmp_path):
    try:
        # One seed, repeat and epsilon: the others differ in a number. Some thousand JPEGs need not be decoded.
        asked = [f"experiment={name}", "seed=0", "repeat=0", "epsilon=8", f"results_dir={tmp_path}"]
        stated = (CONF / "experiment" / f"{name}.yaml").read_text()
        if "/task: cifar10_jpeg" in stated and "records: 10020" not in stated:
            asked += ["task.source.train_records=1000", "task.source.test_records=100"]
        if "/task: cifar10\n" in stated:  # the same size, and in shared data
            asked += ["task=cifar10_jpeg", "task.source.train_records=1000", "task.source.test_records=100"]
        jobs = sweep.plan([*asked, some] if some else asked, multirun=False)
    except DataMissing as missing:
        pytest.skip(f"{name} needs its data: {missing}")
    # A paper's cell may be one run; everything else is a comparison.
    assert len(jobs.jobs) > 1 or name.parts[0] == "paper"
    assert len({job.id for job in jobs.jobs}) == len(jobs.jobs)


def test_quickstart_is_every_defense_with_and_without_a_poisoner(tmp_path):
    jobs = sweep.plan(["experiment=quickstart", f"results_dir={tmp_path}"], multirun=False)
    arms = {tuple(o for o in job.overrides if o.startswith(("defense", "poisoning"))) for job in jobs.jobs}
    assert {(f"defense={d}", f"poisoning={p}") for d in ("none", "dp_local", "dp_central")
            for p in ("none", "scaled_backdoor")} <= arms  # fmt: skip
