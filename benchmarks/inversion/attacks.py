"""The attack that the user names: a choice of ``conf/leakage``, or a dotted target."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from privbench.attacks.leakage.attack import Attack
from privbench.attacks.leakage.labels import Labels
from privbench.benchmarks.build import ConfigError, build, require, resolve


def options() -> dict[str, dict[str, Any]]:
    """The configuration of every attack that ``conf/leakage`` has, by its short name."""
    found = {}
    for file in sorted(files("privbench.conf").joinpath("leakage").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            # As `privbench run` reads it: YAML 1.1 alone takes 1e-3 for a string.
            config = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
            if isinstance(config, dict) and isinstance(config.get("attack"), dict):
                found[file.name.removesuffix(".yaml")] = config["attack"]
    return found


def make_attack(name: str, settings: Mapping[str, Any]) -> Attack:
    """Build an attack.

    Args:
        name: a short name, or the dotted path of a class, the user's own too.
        settings: values by dotted field.

    Raises:
        ConfigError: naming field, value and what would be right.
    """
    known = options()
    if "." in name:
        config: dict[str, Any] = {"_target_": name}
    else:
        require(name in known, "attack", name, f"one of {', '.join(known)}, or a dotted path to a class")
        config = known[name]
    # Whoever names a class on their own command line trusts its package.
    target = str(config["_target_"])
    trusted = [target.partition(".")[0]]
    kind = resolve(target, trusted, "attack")
    sound = isinstance(kind, type) and hasattr(kind, "reconstruct") and hasattr(kind, "needs")
    require(sound, "attack", name, "an attack: a class with needs and reconstruct(view, observation, generator)")
    for field, value in settings.items():
        require(field != "_target_", "attack._target_", value, "named by --attack")
        config = _put(config, field.split("."), value, field)
    return build(config, trusted, "attack")


def _put(config: Mapping[str, Any], path: list[str], value: Any, field: str) -> dict[str, Any]:
    """``config`` with one value changed."""
    first, *rest = path
    require(bool(first), f"attack.{field}", value, "a field's name")
    if not rest:
        return {**config, first: value}
    inner = config.get(first, {})
    require(isinstance(inner, Mapping), f"attack.{field}", value, f"a field of attack; {first} has none")
    return {**config, first: _put(inner, rest, value, field)}


def with_labels(attack: Attack, labels: Labels | None) -> Attack:
    """``attack`` with another way to come by labels; ``None`` leaves it as it is.

    Raises:
        ConfigError: if the attack has no choice.
    """
    if labels is None:
        return attack
    if not is_dataclass(attack) or isinstance(attack, type) or "labels" not in {f.name for f in fields(attack)}:
        raise ConfigError("labels", labels, f"not given: {type(attack).__name__} has no field labels")
    return replace(attack, labels=labels)
