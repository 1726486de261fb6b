"""Every YAML of a task, a partition or a model builds, spells out its fields, and can be overridden."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from privbench.benchmarks.build import ConfigError, build, resolve
from privbench.benchmarks.tasks.models import make
from privbench.benchmarks.tasks.partition import Dirichlet, Natural, Quantity
from privbench.benchmarks.tasks.sources import Digits

CONF = Path(str(files("privbench.conf"))).resolve()
NAMES = {group: sorted(p.stem for p in (CONF / group).glob("*.yaml")) for group in ("task", "task/partition", "model")}


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
    assert isinstance(task.partition, Natural) == (name == "uci_heart")


@pytest.mark.parametrize("name", NAMES["task/partition"])
def test_partition(name):
    config = composed("+task=digits", f"task/partition={name}")["task"]["partition"]
    spelled_out(config, build(config))


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
    with pytest.raises(ConfigError, match=r"model\.factory=ResNet: a model for \(1, 8, 8\)"):
        make(architecture, Digits().load(None).spec, 0)
    with pytest.raises(ConfigError, match="trusted_targets"):
        build(config, path="model")
