"""Training code that a poisoner has tampered with, for its clients' attested guests to run."""

import json
from importlib import resources
from typing import Any

from privbench.benchmarks.build import describe

FILE = "defenses/tee/protocol/trainer.py"

_ADDED = """

# Added by a poisoner: its guests steer their training and change every update after it.
from privbench.attacks.poisoning.poisoner import Seen  # noqa: E402
from privbench.benchmarks.build import build  # noqa: E402

_POISONER, _SHARE = build(json.loads({poisoner!r})), {share!r}


def _crafted(self, received, records, client, round, attempt):
    seed, also = self.manifest.seed, {{"steering": _POISONER.steers(), "attempt": redrawn(self.plan, attempt)}}
    made = self.trainer.train(received, records, self.work, client, self.plan, seed, round, **also)
    return _POISONER.craft(made, Seen(_SHARE, _SHARE), stream(seed, "craft", round, client))


Training.update = _crafted
"""


def tampered(poisoner: Any, share: float) -> dict[str, bytes]:
    """The clients' program with ``poisoner``'s steering and ``craft``, by path below ``privbench/``.

    A guest gets the poisoned records alone, so that a steering that looks at clean ones looks at these.

    Args:
        poisoner: a component that the guest can build anew.
        share: weight of its clients together in the server's step, as ``craft`` takes it.
    """
    source = resources.files("privbench.defenses").joinpath(*FILE.split("/")[1:]).read_text(encoding="utf-8")
    return {FILE: (source + _ADDED.format(poisoner=json.dumps(describe(poisoner)), share=share)).encode()}
