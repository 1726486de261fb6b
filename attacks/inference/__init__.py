from privbench.attacks.inference.canaries import Canaries
from privbench.attacks.inference.membership import LiRA, LossThreshold

__all__ = ["Canaries", "LiRA", "LossThreshold"]
