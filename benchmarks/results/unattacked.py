"""What a figure says of victims for whom there was nothing to attack: they are in no mean."""

from collections.abc import Iterable


def unattacked(counts: Iterable[tuple[str, str, tuple[int, int]]]) -> list[str]:
    """Sentences for a title.

    Args:
        counts: of each mean, what it belongs to (a line, an arm), where it stands on the axis (or ``""``), and
            :meth:`.Arm.unattacked`.

    Returns:
        Nothing where none is lacking, and one sentence where all means lack as many.
    """
    every = list(counts)
    lacking: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for name, at, found in every:
        if found[0]:
            lacking.setdefault((name, found), []).append(at)
    if lacking and len({found for *_, found in every}) == 1:
        lost, victims = every[0][2]
        return [f"{lost} of {victims} victims n/a throughout"]
    return [
        f"{name} without {lost} of {victims} victims (n/a)" + (f" at {', '.join(at)}" if any(at) else "")
        for (name, (lost, victims)), at in lacking.items()
    ]
