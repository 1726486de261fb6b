"""Training code that a poisoner has tampered with, for its clients' attested guests to run."""

import json
from importlib import resources
from typing import Any

from privbench.benchmarks.build import describe

FILE = "defenses/tee/protocol/trainer.py"

_ADDED = """

# Added by a poisoner: its guests change every update after training.
from privbench.benchmarks.build import build  # noqa: E402

_POISONER, _SHARE = build(json.loads({poisoner!r})), {share!r}
_honest = Training.update


def _crafted(self, received, records, client, round):
    update = _honest(self, received, records, client, round)
    return _POISONER.craft(update, (), _SHARE, stream(self.manifest.seed, "craft", round, client))


Training.update = _crafted
"""


def tampered(poisoner: Any, share: float) -> dict[str, bytes]:
    """The clients' program with ``poisoner.craft`` behind its training, by path below ``privbench/``.

    Args:
        poisoner: a component that the guest can build anew.
        share: weight of its clients together in the server's step, as ``craft`` takes it.
    """
    source = resources.files("privbench.defenses").joinpath(*FILE.split("/")[1:]).read_text(encoding="utf-8")
    return {FILE: (source + _ADDED.format(poisoner=json.dumps(describe(poisoner)), share=share)).encode()}
