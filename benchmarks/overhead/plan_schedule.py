"""In which order the arms are booted."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from privbench.benchmarks.conform import require

LEAST = 6
"""Boots of an arm: at least 5 are wanted, and they come in mirrored pairs."""


@dataclass(frozen=True)
class Boot:
    """One boot: its place in the schedule, its block, its arm, and which boot of the arm it is; all from 1."""

    number: int
    block: int
    arm: str
    boot: int


def schedule(arms: Sequence[str], boots: int, seed: int) -> list[Boot]:
    """Blocks in which each arm comes twice, in a random order and then in the reverse one (A B B A).

    What changes slowly and evenly while the boots are taken, such as temperature, then falls on all arms of a block
    alike: the mean place of each arm within a block is the same. The order is drawn anew for each block, so that an
    arm isn't always the first one.

    Args:
        arms: names, at least two, each once.
        boots: of each arm; even.
        seed: of the orders.

    Raises:
        ConfigError: for another number of boots, or of arms.
    """
    require(len(set(arms)) == len(arms) >= 2, "arms", list(arms), "at least two arms, each once")
    require(boots >= LEAST and boots % 2 == 0, "boots", boots, f"an even number, {LEAST} or more: mirrored pairs")
    require(seed >= 0, "seed", seed, "at least 0")
    orders = random.Random(seed)
    found: list[Boot] = []
    for block in range(boots // 2):
        order = orders.sample(list(arms), len(arms))
        for place, arm in enumerate([*order, *reversed(order)]):
            again = place >= len(arms)
            found.append(Boot(len(found) + 1, block + 1, arm, 2 * block + 1 + again))
    return found
