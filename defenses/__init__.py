"""What a federation does about its adversaries.

``Defense`` is loaded when it is asked for: ``privbench attest`` needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privbench.defenses.defense import Defense

__all__ = ["Defense"]


def __getattr__(name: str) -> Any:
    if name == "Defense":
        from privbench.defenses.defense import Defense

        return Defense
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
