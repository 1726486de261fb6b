"""What both guests, the aggregator's and the clients', make of a manifest: layout, facts and plan."""

from typing import TYPE_CHECKING

from privbench.benchmarks.build import build
from privbench.benchmarks.federation.update import Layout
from privbench.defenses.accounting.plan import Facts
from privbench.defenses.tee.protocol.manifest import Manifest

if TYPE_CHECKING:
    from privbench.defenses.accounting.plan import Plan
    from privbench.defenses.local import Local


def layout(manifest: Manifest) -> Layout:
    """Of all vectors."""
    found = manifest.layout
    return Layout(tuple(found["names"]), tuple(tuple(s) for s in found["shapes"]), found["parameters"])


def facts(manifest: Manifest) -> Facts:
    """What of the federation a guarantee depends on."""
    lists = {name: tuple(manifest.facts[name]) for name in ("records", "batch", "steps")}
    return Facts(**{**manifest.facts, **lists})


def plan(manifest: Manifest) -> "Plan | None":
    """The privacy plan, bound to the facts; ``None`` for no guarantee.

    Raises:
        ConfigError: if it can't be built or bound.
    """
    return build(manifest.privacy).bind(facts(manifest)) if manifest.privacy else None


def clip(manifest: Manifest, local: "Local") -> float | None:
    """The plan's clip norm where clients' ``local`` mechanism clips, else ``None``."""
    found = plan(manifest)
    return found.clip if found and (local.private or local.noised) else None
