"""What all parties of a run have agreed on before its first round."""

from dataclasses import dataclass
from typing import Literal

from privbench.benchmarks.shares import at_least
from privbench.defenses.noise import Source
from privbench.defenses.secagg.encoding import Encoding

TAIL = 2
"""Integers that follow an update's: its weight and its records, summed under the same masks."""


@dataclass(frozen=True)
class Parameters:
    """Of one run, known to the server and to every client.

    Args:
        encoding: of updates.
        threshold: share of a round's clients without which nothing is unmasked, above one half.
        expected: clients in a round, as they are expected.
        needed: clients whose noise a guarantee counts on in every sum.
        weighting: ``records`` or ``equal``.
        most: the greatest weight and number of records that each client's own code lets it claim, so that no sum can
            overflow.
        noised: clients noise their updates for what the sum is to hide: nothing of a message may then be clipped, since
            a sum of clipped messages isn't one of noised updates any more.
        keys: where key material comes from.
        seed: the run's.
    """

    encoding: Encoding
    threshold: float
    expected: int
    needed: int
    weighting: str
    most: tuple[int, ...]
    noised: bool
    keys: Source
    seed: int

    def least(self, joined: int) -> int:
        """How many clients a sum needs where so many have joined the round.

        More than half of them, and everybody gives one of a client's two secrets: a server that tells clients different
        things about who dropped out then never gets enough shares of both (Bonawitz et al. 2017, section 6.2).
        """
        share = at_least(self.threshold, max(self.expected, joined))
        return max(2, share, self.needed, joined // 2 + 1)


def limits(encoding: Encoding, weights: tuple[int, ...]) -> tuple[int, ...] | None:
    """The greatest weight of each client: its own, and an equal part of the room that is left.

    Returns:
        ``None`` where the clients' own weights together could overflow.
    """
    room = encoding.capacity - sum(weights)
    return None if room < 0 else tuple(w + room // len(weights) for w in weights)


Secret = Literal["mask", "key"]
"""Which of a client's two secrets a share is of: the one its own mask comes from, or its private key."""
