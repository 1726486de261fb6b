"""A block in front of any model that a malicious server reads inputs with; harmless until its weights are crafted."""

from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn

from privbench.benchmarks.build import require
from privbench.benchmarks.tasks.models.architecture import Architecture
from privbench.benchmarks.tasks.models.small_cnn import SmallCNN
from privbench.benchmarks.tasks.task import Spec


class Block(nn.Module):
    """``x + decode(relu(encode(x)))`` on the flattened input, shape kept, then ``inner``."""

    def __init__(self, shape: tuple[int, ...], bins: int, inner: nn.Module):
        super().__init__()
        size = prod(shape)
        self.encode, self.decode = nn.Linear(size, bins), nn.Linear(bins, size)
        self.relu, self.inner = nn.ReLU(), inner
        nn.init.zeros_(self.decode.bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.inner((flat + self.decode(self.relu(self.encode(flat)))).reshape(x.shape))


@dataclass(frozen=True)
class ImprintBlock:
    """Two linear layers with ReLU beside a shortcut, in front of a model (after Fowl et al. 2022, section 3).

    The architecture is what clients agree to and can see; ``leakage=imprint`` crafts its weights. The shortcut lets the
    model behind see its input, and learn about as well as without the block.

    Args:
        inner: the model behind it.
        bins: units of the block, as many as the attack can tell brightness apart.
    """

    inner: Architecture = field(default_factory=SmallCNN)
    bins: int = 128

    def __post_init__(self) -> None:
        require(self.bins >= 2, "bins", self.bins, "at least 2")

    def build(self, spec: Spec) -> nn.Module:
        return Block(spec.shape, self.bins, self.inner.build(spec))
