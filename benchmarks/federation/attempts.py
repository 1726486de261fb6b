"""Attempts at a round, kept before they begin: nobody can draw a cut-off round's noise from the system again."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path


class HistoryMissing(RuntimeError):
    """What is on disk doesn't tell what a run's rounds have cost: no epsilon could be stated at its end."""


@dataclass
class Attempts:
    """The attempts at the round that isn't finished.

    Args:
        path: of a file that outlives the process; ``None`` where nothing does.
    """

    path: Path | None = None
    _begun: tuple[int, list[list[int]]] = field(default=(0, []), init=False)

    def __post_init__(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:
            found = json.loads(self.path.read_bytes())
            self._begun = int(found["round"]), [list(map(int, cohort)) for cohort in found["invited"]]
        except (ValueError, KeyError, TypeError) as error:
            why = f"{self.path} can't be read ({type(error).__name__}), and no epsilon can be stated"
            raise HistoryMissing(f"{why}; rerun=all starts anew") from None

    def begun(self, round: int) -> list[tuple[int, ...]]:
        """Whom each attempt at ``round`` has invited, the first one first.

        Raises:
            HistoryMissing: if a later round has begun than follows from the caller's own state, or the last one that is
                known of is too old: each is kept before it begins.
        """
        last, invited = self._begun
        if self.path is not None and last < round - 1:
            why = f"{self.path} doesn't hold the attempts at round {round - 1} or {round}: no epsilon can be stated"
            raise HistoryMissing(f"{why}; rerun=all starts anew")
        if last > round:
            why = f"round {last} had begun, and the checkpoint ends at round {round - 1}: no epsilon can be stated"
            raise HistoryMissing(f"{why}; rerun=all starts anew")
        return [tuple(cohort) for cohort in invited] if last == round else []

    def begin(self, round: int, invited: tuple[int, ...]) -> None:
        """Keep an attempt, on the disk, before anybody draws noise for it."""
        cohorts = [*map(list, self.begun(round)), list(invited)]
        self._begun = round, cohorts
        if self.path is None:
            return
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w") as file:
            json.dump({"round": round, "invited": cohorts}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
