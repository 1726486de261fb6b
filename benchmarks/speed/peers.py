"""Other simulators on the same work, where they are installed.

To include them, install beside privbench any of ``blazefl[contrib,reproducibility]`` (2.x needs Python 3.12),
``pfl`` and ``flwr[simulation]``. pfl 0.6 asks for an older dp-accounting than privbench does, so install it, and what
it needs besides (``multiprocess``, ``dill``, ``prv-accountant``), with ``--no-deps``. What can be imported takes part.

Peers draw their own clients and batches, so accuracies agree within noise only. Each run of a peer is a process of
its own (:func:`main`) with one thread a worker: Ray's, pfl's and BlazeFL's global state touches no other contender.
It warms up before the rounds that count; starting it is not counted.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from privbench.benchmarks.speed.work import Contender, Timing, Work

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PFL_PYTORCH_DEVICE": "cpu",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
TIMEOUT = 3600
"""Seconds after which a run of a peer counts as hung."""


@dataclass(frozen=True)
class Peer:
    """A way of running another simulator.

    Args:
        title: in the table; ``{}`` is the number of workers.
        adapter: a module of this package with ``run(work, workers, mode) -> Timing | None`` (``None``: another rank
            of the same run has the result).
        needs: modules that have to be there.
        mode: passed to the adapter.
        ranks: start one process a worker with torchrun.
    """

    title: str
    adapter: str
    needs: tuple[str, ...]
    mode: str = ""
    ranks: bool = False


PEERS = (
    Peer("BlazeFL, {} threads", "peers_blazefl", ("blazefl", "tqdm"), "threads"),
    Peer("BlazeFL, {} processes", "peers_blazefl", ("blazefl", "tqdm"), "processes"),
    Peer("pfl, 1 process", "peers_pfl", ("pfl", "multiprocess", "prv_accountant")),
    Peer("pfl, torchrun with {}", "peers_pfl", ("pfl", "multiprocess", "prv_accountant"), ranks=True),
    Peer("Flower with Ray, {} workers", "peers_flower", ("flwr", "ray")),
)


def installed(workers: int) -> dict[str, Contender]:
    """Contenders by name, for those of BlazeFL, pfl and Flower that can be imported."""
    found = (p for p in PEERS if all(importlib.util.find_spec(module) for module in p.needs))
    return {peer.title.format(workers): contender(peer, workers) for peer in found}


def contender(peer: Peer, workers: int) -> Contender:
    """The peer as a contender.

    Raises:
        RuntimeError: from the contender, if the peer fails; with the end of what it wrote.
        subprocess.TimeoutExpired: from the contender, if it hangs.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"] if peer.ranks else []

    def run(work: Work) -> Timing:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "timing.json"
            values = [peer.adapter, peer.mode, str(workers), json.dumps(dataclasses.asdict(work)), str(out)]
            done = subprocess.run(
                [sys.executable, *launcher, "-m", __name__, *values],
                env={**os.environ, **ENVIRONMENT},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            if done.returncode or not out.exists():
                raise RuntimeError(f"{peer.title.format(workers)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
            return Timing(**json.loads(out.read_text()))

    return run


def main() -> None:
    """Run one peer here; the command line is :func:`contender`'s."""
    parser = argparse.ArgumentParser(description="Time one peer on one work, in this process.")
    parser.add_argument("adapter", choices=sorted({p.adapter for p in PEERS}))
    parser.add_argument("mode")
    parser.add_argument("workers", type=int)
    parser.add_argument("work", type=json.loads, help="fields of Work as JSON")
    parser.add_argument("out", type=Path, help="file for the fields of Timing as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    adapter = importlib.import_module(f"privbench.benchmarks.speed.{options.adapter}")
    timing = adapter.run(Work(**options.work), options.workers, options.mode)
    if timing is not None:
        options.out.write_text(json.dumps(dataclasses.asdict(timing)))


if __name__ == "__main__":
    main()
