"""Where key material comes from."""

import os
from collections.abc import Callable

import torch

from privbench.defenses.noise import Source
from privbench.defenses.secagg.masks import keystream

Entropy = Callable[[int], bytes]
"""So many bytes, new ones at every call."""


def entropy(source: Source, generator: torch.Generator) -> Entropy:
    """``system``: the operating system's cryptographic generator. ``seeded``: AES-CTR under a key that is drawn from
    ``generator``, so that whoever knows the run's seed has every key."""
    if source == "system":
        return os.urandom
    key = bytes(torch.randint(0, 256, (16,), generator=generator, dtype=torch.uint8).tolist())
    drawn = keystream(key)
    return lambda size: drawn.update(bytes(size))
