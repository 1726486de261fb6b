from privbench.attacks.poisoning.backdoor import Backdoor
from privbench.attacks.poisoning.imitation import Imitation
from privbench.attacks.poisoning.poisoner import Poisoner

__all__ = ["Backdoor", "Imitation", "Poisoner"]
