"""What attacks may need beside an honest look, who can have it, and the one check of both."""

from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.federation.view import View, parted

CAPABILITIES = {
    "labels": "the records' labels, declared side information",
    "batch_size": "the number of records, from the view or declared side information",
    "bn_statistics": "running statistics of batch normalisation in the models that travel",
    "model_modification": "a model of the adversary's own making, which the client trained",
}
"""By name, what each is."""

HOLDERS = {
    "bn_statistics": ("server_operator", "active_operator", "participant", "model_recipient"),
    "model_modification": ("active_operator",),
}
"""Who can have a capability; one that isn't listed is open to everybody."""


def never(needs: frozenset[str], adversary: str) -> str | None:
    """The first capability in ``needs`` that ``adversary`` can't have in any round, ``None`` where there is none.

    Args:
        adversary: colluding clients may be named with it; they add none.
    """
    base = (parted(adversary) or (adversary, 0))[0]
    return next((c for c in sorted(needs) if c in HOLDERS and base not in HOLDERS[c]), None)


def missing(needs: frozenset[str], view: View, observation: Observation) -> str | None:
    """The first capability in ``needs`` that this view and observation lack, with what it is; ``None`` for none."""
    made = (m for seen in view.rounds for m in seen.received.values())
    running = any(name.endswith(("running_mean", "running_var")) for name in view.public.layout.buffers)
    here = {
        "labels": lambda: observation.labels is not None,
        "batch_size": lambda: observation.counted,
        "bn_statistics": lambda: running,
        "model_modification": lambda: any(m is observation.model or m.equal(observation.model) for m in made),
    }
    lacking = never(needs, view.adversary) or next((c for c in sorted(needs) if c in here and not here[c]()), None)
    return None if lacking is None else f"{lacking} ({CAPABILITIES[lacking]})"
