"""The sentences of a privacy statement that say what was done: a verifier holds a statement to one of them."""

import re
from collections.abc import Mapping
from typing import Literal

Noise = Literal["central", "local", "distributed"]

RECEIPT_READER = "receipt_reader"
"""Who gets models and the receipts of an attested aggregator."""
DEFINITION = "(epsilon, delta)-differential privacy"
MECHANISMS: Mapping[Noise, str] = {
    "central": "Gaussian on the sum of clipped updates, noise added once by the server",
    "local": "Gaussian on each client's clipped update, added by the client, enough for its message alone",
    "distributed": "Gaussian on the sum of clipped updates, a share of the noise added by each client",
}
WHERE: Mapping[Noise | None, str] = {
    "central": "once, to the sum, by whoever aggregates",
    "local": "by every client, to its own update",
    "distributed": "by every client a share, to its own update",
    None: "by every client, to every local step's sum",
}
NO_ACCOUNTANT = "none needed"  # of a history without noise, or of nothing
BUFFERS = "none: models with them are refused"
NONFINITE = "counts as zero"
DRAWN_BY = "the simulation, from the run's seed"
EXPECTED_BATCH = "expected batch"
NOT_COVERED = "that a client takes part, and how many records it says it has"
READS_UPDATES = "the server reads every update before it is clipped and noised"
READS_MESSAGES = "it reads every message, which holds its own client's noise alone"
SEES_WHO = "it sees who takes part and what is released: every round is counted, without amplification"
READS_RECEIPTS = "it reads how large each cohort was: every round is counted, without amplification"
SEES_SUMS = "it sees sums, over all rounds"
READS: Mapping[bool, str] = {True: "updates", False: "sums"}
"""What whoever runs the server reads, by whether it is single updates: else it is sums, or what is released."""
INDEPENDENT, CONTINUOUS = "independent of all else", "32-bit floating point"

NOISE = re.compile(
    rf"Gaussian, (?:{CONTINUOUS}|(?P<grid>discrete on multiples of \S+ \(Kairouz et al\. 2021, theorem 1\))), "
    rf"(?:{INDEPENDENT}|correlated over (?P<bands>\d{{1,9}}) rounds by a banded matrix)"
)
MORE = re.compile(
    r"(?:, correlated over rounds by a banded matrix of (?P<diagonals>\d{1,9}) diagonals)?"
    r"(?:; the clip is adapted by a count with noise of (?P<count>[\d.e+-]{1,16}),"
    r" and the sum's noise is (?P<sum>[\d.e+-]{1,16}) times the round's clip)?"
)


def local_mechanism(unit: str) -> str:
    """DP-SGD's."""
    return f"DP-SGD on each client: Poisson-sampled Gaussian on clipped per-{unit} gradients"


def scope(unit: str) -> str:
    """Of the clip."""
    return "the whole update of all parameters" if unit == "client" else f"one {unit}'s gradient of all parameters"


def weights(unit: str) -> str:
    """Of updates in the sum."""
    return "equal" if unit == "client" else "by records, which are not covered"


def not_covered(unit: str) -> str:
    """What a guarantee by local steps leaves out."""
    return f"how many {unit}s and records each client has, which sampling rates and weights show"


def once_in(apart: int, times: int) -> str:
    """Why correlated noise counts as it does."""
    return f"nothing is amplified: a client takes part once in {apart} rounds, {times} times at most"


def noise(grid: str | None, bands: int) -> str:
    """The distribution of the noise; :data:`NOISE` reads it."""
    dependence = INDEPENDENT if bands == 1 else f"correlated over {bands} rounds by a banded matrix"
    return f"Gaussian, {grid or CONTINUOUS}, {dependence}"


def correlated(diagonals: int) -> str:
    """What is added to a mechanism of correlated noise; :data:`MORE` reads it."""
    return f", correlated over rounds by a banded matrix of {diagonals} diagonals"


def adapted(count: float, update: float) -> str:
    """What is added to a mechanism whose clip is adapted; :data:`MORE` reads it.

    Args:
        count: standard deviation of the noise on the count.
        update: noise on the sum over the round's clip.
    """
    noise_on_count = f"; the clip is adapted by a count with noise of {count:.6g}"
    return f"{noise_on_count}, and the sum's noise is {update:.6g} times the round's clip"


_HONEST = "clients add their noise to every sum, and none of them is the adversary's"


def assumes(shares: int) -> str:
    """Of whom noise by clients counts on, where sums are all that is seen."""
    return f"at least {shares} {_HONEST}"


def counted_on(assumed: str) -> int:
    """The clients that :func:`assumes` was made with; 0 of any other text."""
    found = re.fullmatch(rf"at least (\d{{1,9}}) {_HONEST}", assumed)
    return int(found[1]) if found else 0
