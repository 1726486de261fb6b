"""The interface of platforms: something that a guest can ask for evidence of itself."""

from dataclasses import dataclass
from typing import Protocol


class Unavailable(RuntimeError):
    """This platform can't give evidence here, and why."""


@dataclass(frozen=True)
class Evidence:
    """What a platform hands out; nobody has verified it yet.

    Args:
        report: 1184 bytes.
        certificates: what came with it, each as :func:`~privbench.defenses.tee.certificates.load` takes it.
    """

    report: bytes
    certificates: tuple[bytes, ...]


class Platform(Protocol):
    """Attributes:
    name: ``sev_snp`` or ``software``.
    """

    @property
    def name(self) -> str: ...

    def evidence(self, report_data: bytes) -> Evidence:
        """A report over 64 bytes of the caller's choice.

        Raises:
            Unavailable: there is none to be had, with the reason.
        """
        ...
