"""What a run's parties refused, by name: on disk, and for the reason of a round that ends without a release."""

from collections import Counter

from privbench.defenses.tee.protocol.folder import Folder
from privbench.defenses.tee.protocol.manifest import Refused

_WHO = {"client": "clients refused", "host": "not joined", "aggregator": "messages refused"}


class Refusals:
    """Of one run.

    Args:
        folder: keeps all of them.
    """

    def __init__(self, folder: Folder):
        self._folder = folder
        self._latest: list[tuple[int, str, Refused]] = []

    def add(self, round: int, client: int, refusal: Refused, by: str) -> None:
        """Keep one.

        Args:
            by: ``client``, ``aggregator`` or ``host``.
        """
        self._folder.refused(round, client, refusal, by)
        self._latest = [*(kept for kept in self._latest if kept[0] == round), (round, by, refusal)]

    def why(self, round: int) -> str:
        """Each party's commonest refusal in ``round``, to stand behind a reason; empty without any."""
        said = ""
        for party, what in _WHO.items():
            found = [refusal for number, by, refusal in self._latest if (number, by) == (round, party)]
            for name, times in Counter(refusal.name for refusal in found).most_common(1):
                reason = next(refusal.reason for refusal in found if refusal.name == name)
                said += f"; {what}: {name} x{times} ({reason})"
        return said
