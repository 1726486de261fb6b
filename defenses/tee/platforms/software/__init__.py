"""A development platform: reports in the true format, signed by software. It proves nothing about hardware.

Reports pass through the same parser, chain and policies as AMD's. They can't be taken for AMD's: every certificate has
``SOFTWARE TEE - NOT AMD`` in its name and a critical extension of this project's own, chip and family ids start with
``SOFTWARE``, no root is pinned, and a policy must allow ``software-tee`` by name. The verdict is then ``software``.

``manufacturer`` is a process of its own that holds the root key; it measures code, has it launched as a guest and signs
reports for it. ``nursery`` is the one that guests are forked from, ``software`` is what the launching process holds,
``guest`` is what runs inside.
"""

from privbench.defenses.tee.platforms.software.software import Software

__all__ = ["Software"]
