"""LPIPS, where torchmetrics and the weights of its network are there. Nothing is ever downloaded for it."""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

BACKBONE = "alexnet-owt-7be5be79.pth"
"""AlexNet's file as torchvision names it: the digits are those that its SHA-256 begins with."""
LEAST = 32
"""The shortest side for which AlexNet's last pooling leaves anything."""


def backbone() -> Path | None:
    """AlexNet's weights in the torch hub's folder (``$TORCH_HOME/hub/checkpoints``), if its digest is right."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
    if not path.is_file():
        return None
    status = path.stat()
    wanted = path.stem.rpartition("-")[2]
    return path if _digest(path, status.st_size, status.st_mtime_ns).startswith(wanted) else None


def lpips(a: Tensor, b: Tensor) -> Tensor | None:
    """Learned perceptual distance of each image, ``(n,)``, lower is more alike (Zhang et al. 2018, AlexNet).

    Args:
        a, b: ``(n, C, H, W)`` in [0, 1]; one channel is repeated.

    Returns:
        ``None`` without torchmetrics (extra ``lpips``) or the network's weights, for sides below :data:`LEAST`, and for
        other than one or three channels.
    """
    defined = a.shape[1] in (1, 3) and min(a.shape[-2:]) >= LEAST
    if not defined or find_spec("torchmetrics") is None or backbone() is None:
        return None
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

    colour = [x.float().expand(-1, 3, -1, -1) for x in (a, b)]
    with torch.no_grad():
        return distance(colour[0], colour[1], net_type="alex", reduction="none", normalize=True).double().reshape(-1)


@lru_cache(maxsize=4)
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
