"""Every YAML of a task, a partition or a model builds, spells out its fields, and can be overridden."""

import dataclasses
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from privbench.benchmarks import experiment, sweep
from privbench.benchmarks.build import ConfigError, build, resolve
from privbench.benchmarks.tasks.models import make
from privbench.benchmarks.tasks.partition import Dirichlet, Natural, Quantity
from privbench.benchmarks.tasks.sources import Digits

CONF = Path(str(files("privbench.conf"))).resolve()
GROUPS = ("task", "task/partition", "task/features", "model")
NAMES = {group: sorted(p.stem for p in (CONF / group).glob("*.yaml")) for group in GROUPS}


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[*overrides, "+data_dir=null"])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain


@pytest.mark.parametrize("name", NAMES["task"])
def test_task(name):
    config = composed(f"+task={name}")["task"]
    task = build(config, path="task")
    spelled_out(config, task)
    spelled_out(config["source"], task.source)
    assert isinstance(task.partition, Natural) == (name in ("uci_heart", "mitbih"))


@pytest.mark.parametrize("name", NAMES["task/partition"])
def test_partition(name):
    config = composed("+task=digits", f"task/partition={name}")["task"]["partition"]
    spelled_out(config, build(config))


@pytest.mark.parametrize("name", NAMES["task/features"])
def test_features(name):
    config = composed("+task=digits", f"task/features={name}", "task.trigger=null")["task"]
    spelled_out(config["features"], build(config["features"]))
    assert build(config, path="task").features == build(config["features"])
    assert composed("+task=digits", f"task/features={name}", "task.features=null")["task"]["features"] is None


@pytest.mark.parametrize("name", NAMES["model"])
def test_model(name):
    config = composed(f"+model={name}")["model"]
    spelled_out(config, build(config))


def spelled_out(config: dict, component: object) -> None:
    """Each field is in the YAML, so that the command line can set it."""
    assert resolve(config["_target_"]) is type(component)
    assert dataclasses.is_dataclass(component)
    assert set(config) - {"_target_"} == {f.name for f in dataclasses.fields(component)}


def test_overrides():
    config = composed(
        "+task=digits", "task/partition=dirichlet", "task.partition.alpha=0.1", "task.trigger.size=3", "task.records=60"
    )
    task = build(config["task"], path="task")
    assert (task.source, task.partition, task.trigger.size) == (Digits(), Dirichlet(0.1), 3)
    task.check(5)
    sizes = composed("+task=digits", "task/partition=quantity", "task.partition.sizes=[5,6]")["task"]["partition"]
    assert build(sizes) == Quantity(sizes=(5, 6))


def test_wrong_values_are_refused_by_field():
    with pytest.raises(ConfigError, match=r"^task\.trigger\.size=0: at least 1"):
        build(composed("+task=digits", "task.trigger.size=0")["task"], path="task")
    with pytest.raises(ConfigError, match=r"^model\.activation=gelu: expected one of relu, tanh"):
        build(composed("+model=small_cnn", "model.activation=gelu")["model"], path="model")


def test_a_module_of_another_package():
    inner = {"_target_": "torchvision.models.resnet18", "_partial_": True, "num_classes": 10}
    config = {"_target_": "privbench.benchmarks.tasks.models.Custom", "factory": inner}
    architecture = build(config, trusted=["torchvision"], path="model")
    with pytest.raises(ConfigError, match=r"model=ResNet: a model for \(1, 8, 8\)"):
        make(architecture, Digits().load(None).spec, 0)
    with pytest.raises(ConfigError, match="trusted_targets"):
        build(config, path="model")


@pytest.fixture
def mynets(tmp_path, monkeypatch):
    """A package of somebody else's with a module and a function that returns one."""
    (tmp_path / "privbench_test_nets").mkdir()
    (tmp_path / "privbench_test_nets" / "__init__.py").touch()
    (tmp_path / "privbench_test_nets" / "nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, hidden: int, classes: int = 10):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))\n"
        "    def build(self):\n"
        "        raise AssertionError('a module is no architecture')\n"
        "def net(hidden: int = 8):\n"
        "    return Net(hidden)\n"
        "def text():\n"
        "    return 'x'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "privbench_test_nets"
    for name in ("privbench_test_nets", "privbench_test_nets.nets"):
        sys.modules.pop(name, None)


def prepared(tmp_path, model, *trusted, seed=0):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=["task=digits", f"seed={seed}", f"results_dir={tmp_path}/r", "name=x"])
    return experiment.prepare({**sweep.plain(config), "model": model, "trusted_targets": list(trusted)})


@pytest.mark.parametrize("name", ["Net", "net"])
def test_a_module_is_named_directly_and_drawn_from_the_seed(mynets, tmp_path, name):
    model = {"_target_": f"{mynets}.nets.{name}", "hidden": 5}
    one, again, other = (prepared(tmp_path, model, mynets, seed=s) for s in (0, 0, 1))
    weights = [nn.utils.parameters_to_vector(p.model.parameters()) for p in (one, again, other)]
    assert len(weights[0]) == 65 * 5 + 6 * 10
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.settings["model"] == model
    wider = prepared(tmp_path, {**model, "hidden": 6}, mynets)
    assert wider.id != one.id


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"_target_": "nets.Net", "hidden": "x"}, "model.hidden"),
        ({"_target_": "nets.Net", "hiden": 5}, "model.hiden"),
        ({"_target_": "nets.Net", "hidden": 5, "classes": 3}, "model"),
        ({"_target_": "nets.Net"}, "model"),
        ({"_target_": "nets.text"}, "model"),
        ({"_target_": "nets.nothing"}, "model._target_"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_by_field(mynets, tmp_path, model, field):
    named = {**model, "_target_": f"{mynets}.{model['_target_']}"}
    with pytest.raises(ConfigError) as error:
        prepared(tmp_path, named, mynets)
    assert error.value.field == field
    with pytest.raises(ConfigError, match="trusted_targets"):
        prepared(tmp_path, named)


def test_mitbih_has_a_client_for_each_patient(published, tmp_path):
    published("mitbih")
    (job,) = sweep.plan(["task=mitbih", "model=signal_cnn", f"results_dir={tmp_path}"], multirun=False).jobs
    assert job.id.endswith("-s0")
    with pytest.raises(ConfigError, match=r"federation\.clients=20: mitbih has 22 patients"):
        sweep.plan(["task=mitbih", "model=signal_cnn", "federation.clients=20"], multirun=False)


def test_one_epsilon_for_every_private_defense_makes_one_run_of_an_arm_without(tmp_path):
    asked = ["task=digits", "model=mlp", "defense=none,dp_local", "epsilon=1,8", f"results_dir={tmp_path}"]
    jobs = sweep.plan(asked, multirun=True).jobs
    assert [j.overrides[2:4] for j in jobs] == [
        ["defense=none", "epsilon=1"],
        ["defense=dp_local", "epsilon=1"],
        ["defense=dp_local", "epsilon=8"],
    ]
    own = sweep.compose(["task=digits", "model=mlp", "defense=dp_local", "epsilon=1", "defense.privacy.epsilon=3"])
    assert own.config["defense"]["privacy"]["epsilon"] == 3
    same = ["task=digits", "model=mlp", "defense=dp_local", "defense.privacy.epsilon=3", "epsilon=1,8"]
    with pytest.raises(ConfigError, match="epsilon=1,8: values that a defense takes"):
        sweep.plan([*same, f"results_dir={tmp_path}"], multirun=True)
    with pytest.raises(ConfigError, match="epsilon=-1"):
        sweep.compose(["task=digits", "model=mlp", "epsilon=-1"])
