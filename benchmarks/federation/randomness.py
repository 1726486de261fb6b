"""Named random streams: the same numbers for any number of workers, in any order of execution."""

import hashlib

import torch


def stream(seed: int, purpose: str, round: int = 0, client: int = -1) -> torch.Generator:
    """A CPU generator that depends on these four values and on nothing else.

    Args:
        seed: the run's seed.
        purpose: what it is drawn for (``"batches"``, ``"noise"``, ...): streams never share.
        round: communication round, from 1; 0 before the first.
        client: client index, -1 for the server.
    """
    digest = hashlib.blake2b(f"{seed}|{purpose}|{round}|{client}".encode(), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") & (2**63 - 1))
    return generator
