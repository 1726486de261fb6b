from privbench.defenses.local.client_noise import ClientNoise
from privbench.defenses.local.compression import Pruning, Quantisation
from privbench.defenses.local.dp_sgd import DPSGD
from privbench.defenses.local.local import Local

__all__ = ["DPSGD", "ClientNoise", "Local", "Pruning", "Quantisation"]
