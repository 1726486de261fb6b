"""The server's side of one round: it carries sealed shares, adds masked updates, and takes the masks off the sum.

What it holds: public keys, shares that it can't open, one running sum, and for each client that shared keys one of its
two secrets. No update is in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privbench.defenses.channel.channel import RoundRefused
from privbench.defenses.secagg import keys, masks, shares
from privbench.defenses.secagg.client import Masked, PublicKeys, Unmasking, common_masks, own_mask
from privbench.defenses.secagg.encoding import Integers
from privbench.defenses.secagg.parameters import TAIL, Parameters


@dataclass(frozen=True)
class Opened:
    """What comes out of a round.

    Args:
        vector: weighted sum of updates, ``(d,)`` float64.
        extras: of further tensors, by name, likewise.
        weight, records: summed.
        clients: who is in it.
    """

    vector: Tensor
    extras: Mapping[str, Tensor]
    weight: int
    records: int
    clients: tuple[int, ...]


@dataclass
class Collection:
    """One round's.

    Args:
        parameters, round: which.
        joined: public keys of all who joined.
        sealed: shares by receiver and sender.
        shared, sent: who shared keys, and who sent an update.
        total: the sum of masked updates.
        extras: what further tensors they hold.
    """

    parameters: Parameters
    round: int
    joined: dict[int, PublicKeys] = field(default_factory=dict)
    sealed: dict[int, dict[int, bytes]] = field(default_factory=dict)
    shared: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    total: Integers | None = None
    extras: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def least(self) -> int:
        return self.parameters.least(len(self.joined))

    def join(self, client: int, given: PublicKeys) -> None:
        """Take public keys."""
        self.joined[client] = given

    def share(self, client: int, sealed: Mapping[int, bytes]) -> None:
        """Take a client's sealed shares."""
        self.shared.append(client)
        for receiver, message in sealed.items():
            self.sealed.setdefault(receiver, {})[client] = message

    def for_client(self, client: int) -> dict[int, bytes]:
        """The shares that were sealed to a client, by sender."""
        return self.sealed.get(client, {})

    def add(self, client: int, masked: Masked) -> None:
        """Take a masked update into the sum; it is kept nowhere else."""
        if self.total is None:
            self.total, self.extras = masked.integers.copy(), masked.extras
        else:
            if masked.extras != self.extras:
                raise RoundRefused(f"extras: client {client}'s are others than client {self.sent[0]}'s")
            self.total += masked.integers
        self.sent.append(client)

    def enough(self, number: int, did: str) -> None:
        """Go on only with as many clients as a sum needs.

        Raises:
            RoundRefused: ``below_threshold``.
        """
        if number < self.least:
            why = f"{number} clients {did} in round {self.round}, {self.least} are needed, nothing is released"
            raise RoundRefused(f"below_threshold: {why}")

    def unmasking(self) -> Unmasking:
        """What the clients that are left are asked for."""
        sent = tuple(sorted(self.sent))
        return Unmasking(sent, tuple(sorted(set(self.shared) - set(sent))))

    def open(self, answers: Mapping[int, Mapping[int, int]], size: int) -> Opened:
        """Take the masks off.

        Args:
            answers: shares by client that answered, and by whose secret they are of.
            size: d.

        Raises:
            RoundRefused: below the threshold, or if shares give no dropped client's key.
        """
        self.enough(len(answers), "helped to unmask")
        assert self.total is not None
        asked = self.unmasking()
        holders = sorted(answers)[: self.least]
        for client in asked.survivors:
            secret = shares.combine({holder: answers[holder][client] for holder in holders})
            masks.apply(self.total, own_mask(secret), -1)
        for client in asked.dropped:
            private = shares.combine({holder: answers[holder][client] for holder in holders})
            if keys.public(private) != self.joined[client].masking:
                raise RoundRefused(f"wrong_shares: those of client {client} don't give its key in round {self.round}")
            left = {other: self.joined[other].masking for other in asked.survivors}
            for other, key in common_masks(private, left).items():
                # The survivor's mask for it is still in the sum.
                masks.apply(self.total, key, -masks.sign(other, client))
        return self._decoded(self.total, size, asked.survivors)

    def _decoded(self, total: Integers, size: int, clients: tuple[int, ...]) -> Opened:
        numbers = self.parameters.encoding.decode(total[:-TAIL])
        extras, start = {}, size
        for name, shape in self.extras:
            count = int(torch.Size(shape).numel())
            extras[name] = numbers[start : start + count].reshape(shape)
            start += count
        return Opened(numbers[:size], extras, int(total[-2]), int(total[-1]), clients)
