from privbench.defenses.local.client_noise import ClientNoise
from privbench.defenses.local.compression import Pruning, Quantisation
from privbench.defenses.local.dp_sgd import DPSGD
from privbench.defenses.local.local import Local
from privbench.defenses.local.soteria import Soteria

__all__ = ["DPSGD", "ClientNoise", "Local", "Pruning", "Quantisation", "Soteria"]
