"""What others published about the cost of confidential computing. None of it was measured here.

Ranges are of the ratio of times, protected over plain. Where a source gives a loss of throughput p, the ratio is
1 / (1 - p). A bound ("below 10%") is a range from 1 to that bound.
"""

import re
from dataclasses import dataclass

from privbench.benchmarks.conform import require


@dataclass(frozen=True)
class Range:
    """One published range.

    Args:
        source: authors, venue and year, or arXiv number.
        setting: what was protected, and what ran.
        low, high: of the ratio of times; ``None`` where the source gives no such ratio.
        says: the figure in the source's own terms.
        of: regular expression of the workloads here that it may be projected to; empty: none.
    """

    source: str
    setting: str
    low: float | None
    high: float | None
    says: str
    of: str = ""

    def __post_init__(self) -> None:
        both = (self.low is None) == (self.high is None)
        ordered = self.low is None or self.high is None or 1 <= self.low <= self.high
        require(both and ordered, "low, high", (self.low, self.high), "1 or more, in order, or neither")

    def fits(self, workload: str) -> bool:
        """Whether ``workload``, such as ``training_step/resnet18``, is of the kind that was published."""
        return self.low is not None and bool(self.of) and re.search(self.of, workload) is not None


_SCIENTIFIC = r"^(matrix_product|thread_scaling)\b"
_TRAINING = r"^(training_step|federated_round|gradient_inversion)\b"

PUBLISHED = (
    Range(
        "Akram et al., IPDPS 2021",
        "SEV, scientific computing, default placement",
        1.0,
        3.4,
        "1 to 3.4 times as long",
        _SCIENTIFIC,
    ),
    Range(
        "Akram et al., IPDPS 2021",
        "SEV, scientific computing, NUMA-aware placement",
        1.0,
        1.15,
        "1 to 1.15 times as long",
        _SCIENTIFIC,
    ),
    Range(
        "Li et al. (Bifrost), ATC 2023",
        "networking of confidential virtual machines",
        None,
        None,
        "the I/O tax can exceed half of the CPU cycles",
    ),
    Range(
        "Casella et al., arXiv 2501.11558",
        "TDX, federated ResNet-18, 100 rounds",
        1.126,
        1.126,
        "+12.6%",
        _TRAINING,
    ),
    Range(
        "Casella et al., arXiv 2501.11558",
        "TDX, federated MobileNet, 100 rounds",
        1.245,
        1.245,
        "+24.5%",
        _TRAINING,
    ),
    Range(
        "Casella et al., arXiv 2501.11558",
        "TLS alone, federated ResNet-18 and MobileNet",
        1.065,
        1.079,
        "+7.9% and +6.5%",
    ),
    Range(
        "VerifiableFL, arXiv 2412.10537",
        "NVFlare with exclaves",
        1.0,
        1.10,
        "below 10%",
        _TRAINING,
    ),
    Range(
        "Chrapek et al., IISWC 2025",
        "Llama 2 inference in TDX and SGX, throughput",
        1.0,
        1 / 0.9,
        "throughput below 10% lower",
    ),
    Range(
        "Chrapek et al., IISWC 2025",
        "Llama 2 inference in TDX and SGX, latency",
        1.0,
        1.2,
        "latency below 20% higher",
    ),
    Range(
        "Chrapek et al., IISWC 2025",
        "H100 confidential computing, Llama 2",
        1.04,
        1.08,
        "4 to 8%",
    ),
    Range(
        "Zhu et al., arXiv 2409.03992",
        "Hopper confidential computing, inference of large language models",
        1.0,
        1.07,
        "typically below 7%",
    ),
)
"""No published SEV-SNP figure of a training step on a CPU was found."""
