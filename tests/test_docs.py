"""The documents are true: their commands run, their links lead somewhere, their tables name what there is."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from glob import glob
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUN_DOCUMENTS = (
    "README.md",
    "docs/getting-started.md",
    "docs/add-a-defense.md",
    "docs/configuration.md",
    "docs/clusters.md",
    "docs/leakage-experiments.md",
    "docs/accounting.md",
    "docs/membership-and-audit.md",
    "docs/private-training.md",
    "docs/robust-aggregation.md",
    "docs/secure-aggregation.md",
    "docs/contrastive.md",
    "docs/poisoning.md",
    "docs/overhead.md",
    "docs/overhead-compare.md",
    "docs/defense-cost.md",
)

TINY = ("federation.rounds=1", "task.records=200", "federation.clients=5")
NO_CALIBRATION = ("defense.privacy.epsilon=null", "defense.privacy.noise_multiplier=1")
SHRUNK = {
    # To the first text that a command holds, these overrides are appended, so that it takes seconds, not minutes.
    # Finding the noise for an epsilon takes longest: sweeps have the same defenses without noise instead.
    "experiment=quickstart": (
        *TINY,
        "defense=none,dp_local_clip_only",
        "leakage.attack.iterations=2",
        "leakage.victims=1",
    ),
    "experiment=attacks_by_rules": (
        *TINY[:2],
        "federation.clients=11",
        "+arm/attacks_by_rules=none,min_max",
        "defense=none,multi_krum",
        "seed=0",
    ),
    "poisoning=neurotoxin": ("federation.rounds=16", *TINY[1:]),
    "experiment=backdoor_matrix": (
        *TINY,
        "+arm/backdoor_matrix=none_f1,data_1",
        "defense=none,norm_clipping",
        "seed=0",
    ),
    "experiment=paper/bagdasaryan2020_replacement": (
        *TINY,
        "+arm/bagdasaryan2020_replacement=none,replacement",
        "defense=none",
        "seed=0",
        "federation.rounds=16",
        "federation.participation=0.5",
    ),
    "experiment=paper/sun2019_clipping": (
        *TINY,
        "+arm/sun2019_clipping=attacked_clip_1,attacked_unprotected",
        "seed=0",
    ),
    "experiment=paper/naseri2022_dp_backdoors": (
        *TINY,
        "+arm/naseri2022_dp_backdoors=none,data_1",
        "defense=none,dp_central_clip_only",
        "epsilon=8",
        "seed=0",
    ),
    "experiment=paper/xie2020_dba": (
        *TINY,
        "+arm/xie2020_dba=none,centralised",
        "defense=none",
        "seed=0",
        "federation.clients=20",
    ),
    "experiment=paper/zhang2022_neurotoxin": (
        *TINY,
        "+arm/zhang2022_neurotoxin=projected,neurotoxin",
        "defense=none",
        "seed=0",
        "federation.rounds=26",
        "federation.participation=0.5",
    ),
    "experiment=leakage_by_": (
        *TINY,
        "defense=none",
        "epsilon=1",
        "seed=0",
        "federation.evaluate_every=1",
        "federation.local.steps=1",
        "federation.local.batch_size=2",
        "leakage.rounds=[1]",
        "leakage.attack.iterations=2",
        "leakage.victims=1",
    ),
    "experiment=dp_audit": (
        *TINY,
        "+arm/dp_audit=none,dp_local_clip_only",
        "+arm/dp_audit_inference=lira",
        "inference.shadows=4",
        "inference.candidates=20",
        "federation.local.steps=2",
    ),
    "task=contrastive_mnist5k": (*TINY, "federation.clients=1", "poisoning.records=0,1", "seed=0"),
    "experiment=paper/carlini2022_contrastive": (
        *TINY,
        "federation.clients=1",
        "+arm/carlini2022_contrastive=fixed_patch,targeted_5",
        "poisoning.records=0,1",
        "seed=0",
    ),
    "experiment=defense_cost": (*TINY, "+arm/defense_cost=logistic", "defense=none,median", "repeat=0,1"),
    "repeat=0,1 name=mine": TINY,
    "experiment=contrastive_federated": (*TINY, "defense=none", "poisoning.records=0,2", "seed=0"),
    "experiment=clipping": (*TINY, "seed=0", "defense.aggregation.clip=1"),
    "leakage=": (*TINY, *NO_CALIBRATION, "leakage.attack.iterations=2", "leakage.victims=1"),
    "-m defense=none,dp_local ": (*TINY, "defense=none,dp_local_clip_only", "seed=0,1"),
    "seed=0,1 ": (*TINY, "seed=0", "defense=none,median"),
    "defense=multi_krum f=4": (*TINY[:2], "federation.clients=11"),
    "privbench partition": ("task.records=200",),
    "workload=[system_calls,": ("repeats=3", "workload=[system_calls,first_touch]"),
    "privbench run": TINY,
}
UNCHANGED = (
    "--help",
    "privbench report",
    "privbench epsilon",
    "privbench noise",
    "privbench dp",
    "overhead show",
    "overhead plan",
    "workload=sorting",
)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def shell_lines(page: Path) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def files(page: Path) -> dict[str, str]:
    """The files that a document shows: blocks whose first or second line is a comment with a path."""
    shown = {}
    for block in blocks(page, "yaml") + blocks(page, "python"):
        path = re.search(r"^# ([\w/-]+\.(?:ya?ml|py))$", "\n".join(block.splitlines()[:2]), re.MULTILINE)
        if path:
            shown[path[1]] = block
    return shown


def shrink(command: str) -> list[str]:
    words = shlex.split(command)
    if any(text in command for text in UNCHANGED):
        return words
    return [*words, *next(more for text, more in SHRUNK.items() if text in command)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder like a user's, with the files that the documents show, and what was run in it so far."""
    folder = tmp_path_factory.mktemp("desk")
    for page in RUN_DOCUMENTS:
        for path, text in files(ROOT / page).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    return folder, set()


def run_python(code: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", RUN_DOCUMENTS)
def test_the_commands_of_a_document_run(name, desk, console):
    folder, done = desk
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PRIVBENCH")}
    commands = 0
    for line in shell_lines(ROOT / name):
        if line.startswith("export "):
            key, _, value = line.removeprefix("export ").partition("=")
            environment[key] = value
        if not line.startswith("privbench"):
            continue
        commands += 1
        words = shrink(line)
        if tuple(words) in done:
            continue
        expanded = [found for word in words[1:] for found in sorted(glob(word, root_dir=folder)) or [word]]
        ended = console.run(expanded, cwd=folder, env=environment)
        assert ended.returncode == 0, f"{line}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
        assert "Traceback" not in ended.stderr, f"{line}\n{ended.stderr[-4000:]}"
        done.add(tuple(words))
    assert commands
    for code in blocks(ROOT / name, "python"):
        if "load(" in code:
            ended = run_python(code, folder, environment)
            assert ended.returncode == 0, ended.stderr[-4000:]


def test_the_defense_of_the_document_is_what_it_says(desk):
    """1, 2, 3, 4 and an outlier of 100: without the farthest from the median, 3, the mean is 2.5."""
    folder, _ = desk
    code = """
import torch
from types import SimpleNamespace
from mydefenses.around_median import MeanAroundMedian
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses.aggregation import Rule, SumRule
layout, nan = Layout(("w",), ((2,),), 1), float("nan")
context = SimpleNamespace(layout=layout, kind="update", round=1, plan=None)
values = (1.0, 100.0, 2.0, nan, 4.0, 3.0)
updates = [Update(torch.tensor([v, -v]), layout, "update", 1, client=10 + c) for c, v in enumerate(values)]
rule: Rule = MeanAroundMedian(f=1)
assert not isinstance(rule, SumRule)
found = rule.combine(iter(updates), {}, context)
assert found.vector.tolist() == [2.5, -2.5], found.vector
assert (found.records, found.extras["screened"].tolist()) == (5, [13])
assert rule.combine(iter(()), {}, context).vector.tolist() == [0, 0]
rule.check(SimpleNamespace(clients=3))
try:
    rule.check(SimpleNamespace(clients=2))
except ConfigError as refused:
    assert str(refused).startswith("defense.aggregation.f=1: "), refused
else:
    raise AssertionError("two clients are too few")
"""
    ended = run_python(code, folder, {**os.environ, "PYTHONPATH": "."})
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_shell_blocks_name_targets_and_packages_that_exist(page):
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in shell_lines(page):
        words = shlex.split(line)
        if words[0] == "make":
            assert set(words[1:]) <= targets, line
        elif words[0] == "pip":
            assert words[:2] == ["pip", "install"], line
            constraints = words[words.index("-c") + 1] if "-c" in words else "pyproject.toml"
            assert (ROOT / constraints).is_file(), line
        else:
            assert words[0] in ("privbench", "export", "source"), line


def test_the_readme_begins_with_the_two_commands():
    assert shell_lines(ROOT / "README.md")[:2] == ["make demo", "make test"]


def test_adding_a_defense_takes_less_than_60_lines():
    assert len((ROOT / "docs/add-a-defense.md").read_text(encoding="utf-8").splitlines()) < 60


def slug(heading: str) -> str:
    """A heading's anchor, as renderers make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [slug(h) for h in headings], f"{link}: no such heading"


@pytest.mark.parametrize("name", ["README.md", "docs/configuration.md"])
def test_the_table_of_groups_names_every_option(name):
    section = (ROOT / name).read_text(encoding="utf-8").split("\n## Groups\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+)` \| ([^|]*) \|", section, re.MULTILINE)
    listed = {group: sorted(re.findall(r"`(\w+)`", options)) for group, options in rows}
    folders = {p.parent for p in (ROOT / "conf").rglob("*.yaml")} - {ROOT / "conf"}
    # Papers' settings are folders of their own, with a table of their own.
    there = {f.relative_to(ROOT / "conf").as_posix(): sorted(p.stem for p in f.glob("*.yaml")) for f in folders}
    # So are an experiment's arms; the groups of `privbench overhead` are in a document of its own.
    elsewhere = ("experiment/paper", "arm/", "overhead")
    assert listed == {g: options for g, options in there.items() if not g.startswith(elsewhere)}


def test_the_table_of_workloads_names_each():
    section = (ROOT / "docs/overhead.md").read_text(encoding="utf-8").split("\n## Workloads\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(p.stem for p in (ROOT / "conf/overhead/workload").glob("*.yaml"))


def keys(section: str) -> list[str]:
    """Keys in the first column of a section's table of ``docs/configuration.md``."""
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`([\w.*]+)`", cell)]


def test_configuration_names_every_key():
    from dataclasses import fields

    from privbench.benchmarks.experiment import GROUPS, Experiment
    from privbench.benchmarks.federation.settings import FederationSettings, LocalWork

    assert sorted(keys("Root keys")) == sorted(f.name for f in fields(Experiment) if f.name not in GROUPS)
    own = [f.name for f in fields(FederationSettings) if f.name not in ("local", "server")]
    local = [f"local.{f.name}" for f in fields(LocalWork)]
    assert sorted(keys("Federation")) == sorted([*own, *local, "server.*"])


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
