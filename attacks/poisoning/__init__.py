from privbench.attacks.poisoning.backdoor import Backdoor
from privbench.attacks.poisoning.poisoner import Poisoner

__all__ = ["Backdoor", "Poisoner"]
