"""A client's side of one round (Bonawitz et al. 2017, figure 4).

It has two key pairs, one for masks that it has in common with others and one for messages to them, and draws a mask of
its own on top: without that, a server that only claimed that the client had dropped out would be told how to take its
masks off. Shares of the key serve for clients that did drop out, shares of the own mask for those that did not, and
nobody gives both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.update import Update
from privbench.defenses.channel.channel import RoundRefused
from privbench.defenses.secagg import keys, masks, shares
from privbench.defenses.secagg.encoding import Integers
from privbench.defenses.secagg.entropy import entropy
from privbench.defenses.secagg.parameters import TAIL, Parameters


@dataclass(frozen=True)
class PublicKeys:
    """What a client tells the others in the first phase; 32 bytes each.

    Args:
        sealing: for messages to it.
        masking: masks with it come from this.
    """

    sealing: bytes
    masking: bytes


@dataclass(frozen=True)
class Secrets:
    """What a client keeps in one round; nothing of it is ever sent in the clear.

    Args:
        round: which.
        sealing, masking: private keys, in the shares' field.
        joined: everybody's public keys; empty before they are known.
        common: what it has in common with each of the others, for messages between them.
        own: the secret of its own mask.
        received: sealed shares by sender, for the unmasking.
        shares: of its own two secrets, what it holds itself: of the mask and of the key.
    """

    round: int
    sealing: int
    masking: int
    joined: Mapping[int, PublicKeys] = field(default_factory=dict)
    common: Mapping[int, bytes] = field(default_factory=dict)
    own: int = 0
    received: Mapping[int, bytes] | None = None
    shares: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Masked:
    """A masked update.

    Args:
        integers: ``(d + extras + 2,)``; the last two are weight and records.
        extras: name and shape of each further tensor, in order.
    """

    integers: Integers
    extras: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Unmasking:
    """What the server asks of those who are left.

    Args:
        survivors: whose updates are in the sum: shares of their own masks are asked for.
        dropped: who shared keys and sent no update: shares of their keys are.
    """

    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


def advertise(parameters: Parameters, client: int, round: int) -> tuple[PublicKeys, Secrets]:
    """Phase 1: two fresh key pairs."""
    draw = entropy(parameters.keys, stream(parameters.seed, "secagg_keys", round, client))
    made = Secrets(round, shares.element(draw), shares.element(draw))
    return PublicKeys(keys.public(made.sealing), keys.public(made.masking)), made


def share(
    parameters: Parameters, client: int, joined: Mapping[int, PublicKeys], mine: Secrets
) -> tuple[dict[int, bytes], Secrets]:
    """Phase 2: shares of both secrets, sealed to each of the others.

    Args:
        joined: public keys of all who joined, its own too.

    Raises:
        RoundRefused: for fewer than a sum needs, or keys that aren't different.
    """
    least = parameters.least(len(joined))
    if len(joined) < least:
        raise RoundRefused(f"below_threshold: {len(joined)} clients joined round {mine.round}, {least} are needed")
    different = {key for given in joined.values() for key in (given.sealing, given.masking)}
    if len(different) < 2 * len(joined):
        raise RoundRefused(f"public_keys: two of round {mine.round} are the same")
    draw = entropy(parameters.keys, stream(parameters.seed, "secagg_shares", mine.round, client))
    own = shares.element(draw)
    of_mask = shares.split(own, least, joined, draw)
    of_key = shares.split(mine.masking, least, joined, draw)
    common = keys.agreed(mine.sealing, {other: key.sealing for other, key in joined.items() if other != client})
    sealed = {
        other: keys.seal(_between(secret, client, other), _pair(of_mask[other], of_key[other]))
        for other, secret in common.items()
    }
    both = of_mask[client], of_key[client]
    return sealed, replace(mine, joined=joined, common=common, own=own, shares=both)


def mask(
    parameters: Parameters, client: int, update: Update, received: Mapping[int, bytes], mine: Secrets
) -> tuple[Masked, Secrets]:
    """Phase 3: the update under its own mask and one in common with each other client that shared its keys.

    Args:
        update: finite; its weight is at most what the run's sums have room for.
        received: sealed shares by sender.

    Raises:
        RoundRefused: if fewer than a sum needs have shared, or somebody who never joined.
    """
    least = parameters.least(len(mine.joined))
    if len(received) + 1 < least or not set(received) < set(mine.joined) or client in received:
        raise RoundRefused(
            f"below_threshold: {len(received) + 1} clients shared keys, {least} of those who joined have to"
        )
    integers, extras = _integers(parameters, client, update, mine.round)
    masks.apply(integers, own_mask(mine.own), 1)
    for other, key in common_masks(mine.masking, {other: mine.joined[other].masking for other in received}).items():
        masks.apply(integers, key, masks.sign(client, other))
    # What its masks come from has served; a message that was sent can't be unmasked with what it keeps.
    return Masked(integers, extras), replace(mine, masking=0, own=0, received=received)


def unmask(parameters: Parameters, client: int, asked: Unmasking, mine: Secrets) -> dict[int, int]:
    """Phase 4: one share for each client that shared its keys, of the mask or of the key but never of both.

    Raises:
        RoundRefused: if both are asked for, or the sum would be of fewer than is allowed, or of others.
    """
    sent, dropped, received = set(asked.survivors), set(asked.dropped), mine.received or {}
    if sent & dropped:
        raise RoundRefused(f"both_secrets: of client {min(sent & dropped)}, whose update would lie open")
    least = parameters.least(len(mine.joined))
    if len(sent) < least or client not in sent or not sent | dropped <= {client, *received}:
        raise RoundRefused(
            f"below_threshold: {len(sent)} clients sent an update, {least} of those who shared keys have to"
        )
    given = {}
    for other in sorted(sent | dropped):
        of_mask, of_key = mine.shares if other == client else _opened(mine, client, other)
        given[other] = of_mask if other in sent else of_key
    return given


def own_mask(secret: int) -> bytes:
    """The key of a client's own mask."""
    return keys.derived(secret.to_bytes(shares.SIZE, "little"), "own mask")


def common_masks(private: int, others: Mapping[int, bytes]) -> dict[int, bytes]:
    """The keys of the masks that a private key's owner has in common with others, whose public keys they are."""
    return {client: keys.derived(secret, "common mask") for client, secret in keys.agreed(private, others).items()}


def _integers(
    parameters: Parameters, client: int, update: Update, round: int
) -> tuple[Integers, tuple[tuple[str, tuple[int, ...]], ...]]:
    """Weight times the encoded update, its extras, the weight and the records."""
    encoding, names = parameters.encoding, sorted(update.extras)
    parts = [update.vector, *(update.extras[n].reshape(-1).float() for n in names)]
    rounding = stream(parameters.seed, "secagg_rounding", round, client)
    encoded = encoding.encode(torch.cat(parts), rounding, clips=not parameters.noised)
    records = min(update.records, parameters.most[client])
    weight = records if parameters.weighting == "records" else 1
    integers = np.empty(len(encoded) + TAIL, dtype=encoding.dtype)
    np.multiply(encoded, encoding.dtype(weight), out=integers[:-TAIL])
    integers[-TAIL:] = weight, records
    return integers, tuple((n, tuple(update.extras[n].shape)) for n in names)


def _between(common: bytes, sender: int, receiver: int) -> bytes:
    return keys.derived(common, f"shares of {sender} for {receiver}")


def _opened(mine: Secrets, client: int, other: int) -> tuple[int, int]:
    assert mine.received is not None
    opened = keys.unseal(_between(mine.common[other], other, client), mine.received[other])
    of_mask, of_key = opened[: shares.SIZE], opened[shares.SIZE :]
    return int.from_bytes(of_mask, "little"), int.from_bytes(of_key, "little")


def _pair(of_mask: int, of_key: int) -> bytes:
    return of_mask.to_bytes(shares.SIZE, "little") + of_key.to_bytes(shares.SIZE, "little")
