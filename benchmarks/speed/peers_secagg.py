"""Flower's SecAgg+ on the same updates: its client's stages as they are, and what its server's unmask stage computes.

All clients are neighbours, which makes it Bonawitz et al. 2017. Nothing is sent anywhere; messages are counted as the
bytes of their values. Its masks come from numpy's Mersenne Twister under a seed of 32 bits, which is no cryptographic
generator.
"""

# pyright: reportMissingImports=false

import importlib
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

from privbench.benchmarks.speed.secagg import Cost, Work

# The package has a function of the module's name.
mod: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")

RANGE, LEVELS, MODULUS, HEAVIEST = 1.0, 1 << 16, 1 << 32, 1000


class _Clock:
    """Seconds spent by whom."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def __call__(self, who: str, function: Any, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = function(*arguments)
        self.spent[who] += time.perf_counter() - begin
        return result


def flower(work: Work) -> Cost:
    """One round."""
    clock, everybody = _Clock(), range(work.clients)
    present = everybody[: work.clients - work.lost]
    settings = {
        Key.SAMPLE_NUMBER: work.clients,
        Key.SHARE_NUMBER: work.clients,
        Key.THRESHOLD: round(0.67 * work.clients),
        Key.CLIPPING_RANGE: RANGE,
        Key.TARGET_RANGE: LEVELS,
        Key.MOD_RANGE: MODULUS,
        Key.MAX_WEIGHT: HEAVIEST,
    }
    states = [mod.SecAggPlusState(nid=c) for c in everybody]
    joined = [clock("client", mod._setup, states[c], settings) for c in everybody]
    public = {str(c): (given[Key.PUBLIC_KEY_1], given[Key.PUBLIC_KEY_2]) for c, given in enumerate(joined)}
    shared = [clock("client", mod._share_keys, states[c], public) for c in everybody]
    inbox: list[dict[str, list[Any]]] = [{Key.CIPHERTEXT_LIST: [], Key.SOURCE_LIST: []} for _ in everybody]
    for sender, given in enumerate(shared):
        for receiver, sealed in zip(given[Key.DESTINATION_LIST], given[Key.CIPHERTEXT_LIST], strict=True):
            inbox[receiver][Key.CIPHERTEXT_LIST].append(sealed)
            inbox[receiver][Key.SOURCE_LIST].append(sender)
    total: list[np.ndarray] | None = None
    sent = 0
    for c in present:
        made = ndarrays_to_parameters([work.updates[c].vector.numpy()])
        masked = clock("client", mod._collect_masked_vectors, states[c], inbox[c], work.updates[c].records, made)
        sent += sum(map(len, masked[Key.MASKED_PARAMETERS]))
        total = clock("server", _add, total, masked[Key.MASKED_PARAMETERS])
    asked = {Key.ACTIVE_NODE_ID_LIST: list(present), Key.DEAD_NODE_ID_LIST: list(everybody[len(present) :])}
    answers = [clock("client", mod._unmask, states[c], asked) for c in present]
    mean = clock("server", _open, total, answers, public, len(present))
    exchanged = sum(len(s) for given in inbox for s in given[Key.CIPHERTEXT_LIST])
    keys = sum(len(k) for pair in public.values() for k in pair)
    shares = sum(len(s) for answer in answers for s in answer[Key.SHARE_LIST])
    return Cost(
        work.clients,
        clock.spent["client"] / work.clients,
        clock.spent["server"],
        (sent + exchanged + keys + shares) / work.clients,
        keys + exchanged / work.clients,
        torch.from_numpy(mean),
    )


def _add(total: list[np.ndarray] | None, arrays: list[bytes]) -> list[np.ndarray]:
    """As the server's third stage."""
    vector = [bytes_to_ndarray(a) for a in arrays]
    return vector if total is None else parameters_addition(total, vector)


def _open(total: list[np.ndarray], answers: list[Any], public: dict[str, Any], present: int) -> np.ndarray:
    """As the server's fourth stage: the weighted mean."""
    total = parameters_mod(total, MODULUS)
    shares: defaultdict[int, list[bytes]] = defaultdict(list)
    for answer in answers:
        for owner, share in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True):
            shares[owner].append(share)
    for owner, found in shares.items():
        secret = combine_shares(found)
        if owner < present:
            total = parameters_subtraction(total, pseudo_rand_gen(secret, MODULUS, get_parameters_shape(total)))
            continue
        for other in range(present):
            theirs = bytes_to_public_key(public[str(other)][0])
            key = generate_shared_key(bytes_to_private_key(secret), theirs)
            mask = pseudo_rand_gen(key, MODULUS, get_parameters_shape(total))
            total = (parameters_addition if owner > other else parameters_subtraction)(total, mask)
    weight, vector = factor_extract(parameters_mod(total, MODULUS))
    (summed,) = dequantize(vector, RANGE, LEVELS)
    return (summed - (present - 1) * RANGE) * (LEVELS / weight)
