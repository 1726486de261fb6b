from privbench.attacks.poisoning.backdoor import Backdoor
from privbench.attacks.poisoning.farthest import Adaptive, MinMax, MinSum
from privbench.attacks.poisoning.imitation import Imitation
from privbench.attacks.poisoning.label_flip import LabelFlip
from privbench.attacks.poisoning.poisoner import Colluders, Holding, Poisoner, Seen
from privbench.attacks.poisoning.schedule import Schedule
from privbench.attacks.poisoning.steering import ConstrainAndScale, Neurotoxin, ProjectedDescent
from privbench.attacks.poisoning.untargeted import ALittleIsEnough, InnerProduct

__all__ = [
    "ALittleIsEnough",
    "Adaptive",
    "Backdoor",
    "Colluders",
    "ConstrainAndScale",
    "Holding",
    "Imitation",
    "InnerProduct",
    "LabelFlip",
    "MinMax",
    "MinSum",
    "Neurotoxin",
    "Poisoner",
    "ProjectedDescent",
    "Schedule",
    "Seen",
]
