"""Where reports come from. What is measured, signed and asked for differs; what a verifier does with it doesn't."""

from privbench.defenses.tee.platforms.platform import Evidence, Platform, Unavailable

__all__ = ["Evidence", "Platform", "Unavailable"]
