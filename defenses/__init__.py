from privbench.defenses.defense import Defense

__all__ = ["Defense"]
