"""Models: dataclasses that build a ``torch.nn.Module`` for a task's inputs."""

from privbench.benchmarks.tasks.models.architecture import Architecture, Custom, make
from privbench.benchmarks.tasks.models.cnn6 import CNN6
from privbench.benchmarks.tasks.models.convnet import ConvNet
from privbench.benchmarks.tasks.models.dense import MLP, LogisticRegression
from privbench.benchmarks.tasks.models.dual import DualEncoder
from privbench.benchmarks.tasks.models.imprint import ImprintBlock
from privbench.benchmarks.tasks.models.lenet import LeNet
from privbench.benchmarks.tasks.models.resnet import ResNet18, ResNet20
from privbench.benchmarks.tasks.models.scatter import ScatterCNN, ScatterLinear
from privbench.benchmarks.tasks.models.signal_cnn import SignalCNN
from privbench.benchmarks.tasks.models.small_cnn import SmallCNN
from privbench.benchmarks.tasks.models.tanh_cnn import TanhCNN

__all__ = [
    "CNN6",
    "MLP",
    "Architecture",
    "ConvNet",
    "Custom",
    "DualEncoder",
    "ImprintBlock",
    "LeNet",
    "LogisticRegression",
    "ResNet18",
    "ResNet20",
    "ScatterCNN",
    "ScatterLinear",
    "SignalCNN",
    "SmallCNN",
    "TanhCNN",
    "make",
]
