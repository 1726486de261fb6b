"""What both guests, the aggregator's and the clients', make of a manifest: layout, facts and plan."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from privbench.benchmarks.build import build, require, resolve
from privbench.benchmarks.federation.update import Layout
from privbench.defenses.accounting.plan import Facts
from privbench.defenses.tee.protocol.manifest import Manifest

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Plan
    from privbench.defenses.local import Local


HOMES = {
    "aggregation": ("privbench.defenses.aggregation.",),
    "release": ("privbench.defenses.release.",),
    "server": ("privbench.benchmarks.federation.server.",),
    "privacy": ("privbench.defenses.accounting.",),
    "local": ("privbench.defenses.local.",),
    "work": ("privbench.benchmarks.federation.settings.", "privbench.benchmarks.federation.augmentation."),
    "model": ("privbench.benchmarks.tasks.models.",),
    "task": ("privbench.benchmarks.tasks.",),
}
"""Where each kind of component lives, with its parts. A host writes the configuration, and must not get other code
called by it."""


def component(kind: str, configuration: Any) -> Any:
    """The component of this kind that ``configuration`` describes; nothing in it may be anything else.

    Raises:
        ConfigError: if it names what isn't a dataclass at home with its kind, or can't be built.
    """
    for target in _targets(configuration):
        named(kind, target)
    return build(configuration)


def named(kind: str, target: Any) -> Any:
    """The class that ``target`` names, a dataclass at home with its kind.

    Raises:
        ConfigError: otherwise.
    """
    homes = HOMES[kind]
    at_home = isinstance(target, str) and target.startswith(homes)
    below = " or ".join(home[:-1] for home in homes)
    require(at_home, f"{kind}._target_", target, f"a component below {below}")
    found = resolve(target)
    require(dataclasses.is_dataclass(found), f"{kind}._target_", target, "a component, which is a dataclass")
    return found


def _targets(configuration: Any) -> Iterator[Any]:
    if isinstance(configuration, Mapping):
        require("_partial_" not in configuration, "_partial_", configuration.get("_partial_"), "a whole component")
        if "_target_" in configuration:
            yield configuration["_target_"]
        for value in configuration.values():
            yield from _targets(value)
    elif isinstance(configuration, list | tuple):
        for value in configuration:
            yield from _targets(value)


def layout(manifest: Manifest) -> Layout:
    """Of all vectors."""
    found = manifest.layout
    return Layout(tuple(found["names"]), tuple(tuple(s) for s in found["shapes"]), found["parameters"])


def facts(manifest: Manifest) -> Facts:
    """What of the federation a guarantee depends on."""
    return Facts(**{name: tuple(v) if isinstance(v, list) else v for name, v in manifest.facts.items()})


def plan(manifest: Manifest) -> "Plan | None":
    """The privacy plan, bound to the facts; ``None`` for no guarantee.

    Raises:
        ConfigError: if it can't be built or bound.
    """
    return component("privacy", manifest.privacy).bind(facts(manifest)) if manifest.privacy else None


def clip(manifest: Manifest, local: "Local") -> float | None:
    """The plan's clip norm where clients' ``local`` mechanism clips, else ``None``."""
    found = plan(manifest)
    return found.clip if found and (local.private or local.noised) else None
