"""One victim in one round, as one adversary sees it: what a leakage measure is taken of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from privbench.benchmarks.federation.view import View
from privbench.benchmarks.measures.comparison import Records


@dataclass(frozen=True)
class Case:
    """One victim in one round, as one adversary sees it.

    Args:
        view: of the adversary.
        round, client: what is attacked.
        truth: the records behind the client's update, standardised. Only declared side information of it reaches the
            attack: labels where the attack needs them, the number of records where the view shows none.
        generator: a CPU generator.
        distractors: other clients' records, standardised, for identification and the guess ``other_image``.
        peers: other clients' records of the truth's labels, for ``class_mean`` and ``same_label``; ``None``: those
            among the distractors.
        strangers: draws so many further records of other clients, standardised, or as many as there are: for
            ``other_image`` where more than the distractors are matched, and for identification at chance.
    """

    view: View
    round: int
    client: int
    truth: Records
    generator: torch.Generator
    distractors: Records | None = None
    peers: Records | None = None
    strangers: Callable[[int], Records] | None = None

    def further(self, count: int) -> Records | None:
        """So many records of other clients beside the distractors, or as many as there are."""
        return None if self.strangers is None else self.strangers(count)
