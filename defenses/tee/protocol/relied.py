"""What all clients of a run know before its first round, and rely on."""

from dataclasses import dataclass
from functools import lru_cache

from privbench.defenses.tee.protocol.manifest import Manifest
from privbench.defenses.tee.protocol.opening import Relying


@dataclass(frozen=True)
class ReliedOn:
    """The certificates come with the evidence.

    Args:
        manifest: countersigned by all of them.
        root: of a software platform, DER; ``None`` trusts AMD's pinned keys.
        tcb_floor: as in :class:`~privbench.defenses.tee.policy.Policy`.
    """

    manifest: Manifest
    root: bytes | None
    tcb_floor: str

    def relying(self, certificates: tuple[bytes, ...]) -> Relying:
        # Whoever launches programs in a running guest can't set its HOST_DATA any more.
        fresh = self.manifest.platform == "software"
        return Relying(self.manifest, certificates, self.root, self.tcb_floor, host_data=fresh)

    def __hash__(self) -> int:
        return hash((self.manifest.digest, self.root))


@lru_cache(maxsize=4)
def relying(on: ReliedOn, certificates: tuple[bytes, ...]) -> Relying:
    """Parsed once a process: what each of its clients relies on is the same, what each checks is its own."""
    return on.relying(certificates)
