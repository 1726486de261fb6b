from privbench.defenses.local.per_sample.book_keeping import BookKeeping
from privbench.defenses.local.per_sample.choice import ENGINES, choose, verify
from privbench.defenses.local.per_sample.clipped import ClippedSum
from privbench.defenses.local.per_sample.engine import Engine, Units, Unsupported
from privbench.defenses.local.per_sample.loop import Loop
from privbench.defenses.local.per_sample.patients import Patients
from privbench.defenses.local.per_sample.vmap import Vmap

__all__ = [
    "ENGINES",
    "BookKeeping",
    "ClippedSum",
    "Engine",
    "Loop",
    "Patients",
    "Units",
    "Unsupported",
    "Vmap",
    "choose",
    "verify",
]
