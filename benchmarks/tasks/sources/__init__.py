"""Data sets, one file each."""

from privbench.benchmarks.tasks.sources.captions import Captions
from privbench.benchmarks.tasks.sources.cifar10 import CIFAR10
from privbench.benchmarks.tasks.sources.cifar10_jpeg import CIFAR10JPEG
from privbench.benchmarks.tasks.sources.digits import Digits
from privbench.benchmarks.tasks.sources.files import DataMissing
from privbench.benchmarks.tasks.sources.mitbih import MITBIH
from privbench.benchmarks.tasks.sources.mnist import MNIST
from privbench.benchmarks.tasks.sources.mnist5k import MNIST5k
from privbench.benchmarks.tasks.sources.nih_cxr import NIHCXR
from privbench.benchmarks.tasks.sources.pneumonia import PneumoniaMNIST
from privbench.benchmarks.tasks.sources.templated import Templated
from privbench.benchmarks.tasks.sources.uci_heart import UCIHeart

__all__ = [
    "CIFAR10",
    "CIFAR10JPEG",
    "MITBIH",
    "MNIST",
    "NIHCXR",
    "Captions",
    "DataMissing",
    "Digits",
    "MNIST5k",
    "PneumoniaMNIST",
    "Templated",
    "UCIHeart",
]
