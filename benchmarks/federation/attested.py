"""What attested clients train and how, as a configuration that their guests build it from."""

from typing import TYPE_CHECKING, Any

from privbench.benchmarks.build import describe, require
from privbench.benchmarks.tasks.models.architecture import Custom

if TYPE_CHECKING:
    from privbench.benchmarks.federation.federation import Federation


def check(federation: "Federation") -> None:
    """Refuse what a guest can't build from the run's manifest.

    Raises:
        ConfigError: for a model, task or local mechanism that isn't this package's own, and for a GPU.
    """
    field, device = "defense.channel.attest_clients", federation.device.type
    parts = {
        "model": federation.architecture,
        "task": federation.task,
        "local mechanism": federation.defense.local,
    }
    for name, part in parts.items():
        ours = type(part).__module__.startswith("privbench.") and not isinstance(part, Custom)
        require(ours, field, True, f"false, or a {name} of this package, which clients' guests can build")
    spec = federation.task.spec
    require(spec.domain != "pair", field, True, f"false: guests aren't told the vocabulary of {spec.name}")
    require(device == "cpu", field, True, "false on a GPU: clients' guests train on the CPU")


def training(federation: "Federation") -> dict[str, Any]:
    """Model, inputs, task, local work and mechanism; of the data nothing but shape and classes."""
    spec, task = federation.task.spec, type(federation.task)
    return {
        "model": describe(federation.architecture),
        "inputs": {"name": spec.name, "shape": spec.shape, "classes": spec.classes, "domain": spec.domain},
        "task": f"{task.__module__}.{task.__qualname__}",
        "work": describe(federation.settings.local),
        "local": describe(federation.local),
    }
