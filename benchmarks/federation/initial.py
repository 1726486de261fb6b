"""Starting from what another run has trained."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.server import ServerState
from privbench.benchmarks.federation.update import Layout

FIELD = "federation.start_from"


def model_of(folder: str, layout: Layout) -> Tensor:
    """The model that a run of this suite has saved last, ``(layout.size,)``.

    The file is unpickled, as that of a run that is resumed: name runs of your own alone.

    Args:
        folder: the run's directory.
        layout: that the model must have.

    Raises:
        ConfigError: if there is no such run, or its model is another one.
    """
    path = Path(folder) / "checkpoint.pt"
    if not path.is_file():
        raise ConfigError(FIELD, folder, "the directory of a run that has finished a round (it holds checkpoint.pt)")
    try:
        state = torch.load(path, weights_only=False)["state"]
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, pickle.UnpicklingError):
        raise ConfigError(FIELD, folder, "a run whose checkpoint.pt is whole") from None
    if not isinstance(state, ServerState) or state.model.shape != (layout.size,):
        have = tuple(state.model.shape) if isinstance(state, ServerState) else type(state).__name__
        raise ConfigError(FIELD, folder, f"a run of the same model, of {layout.size} numbers; this one has {have}")
    if not bool(torch.isfinite(state.model).all()):
        raise ConfigError(FIELD, folder, "a run whose model is finite")
    return state.model
