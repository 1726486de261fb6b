"""A run that starts from another's last model."""

import pytest
import torch

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.server import ServerState
from privbench.benchmarks.tasks.models.architecture import make
from privbench.benchmarks.tasks.models.dense import MLP
from privbench.defenses import Defense
from privbench.defenses.accounting import ClientLevel
from privbench.defenses.aggregation import ClippedMean
from privbench.defenses.release import CentralGaussian


@pytest.fixture
def saved(tmp_path):
    def save(model: torch.Tensor) -> str:
        torch.save({"state": ServerState(round=7, model=model), "metrics_bytes": 0}, tmp_path / "checkpoint.pt")
        return str(tmp_path)

    return save


def test_one_run_after_another_is_one_run(federate, saved, task):
    """The server has no state here, and clients use all their records: round 2 of 2 is round 1 of the next."""
    work = {"batch_size": None}
    both = federate(rounds=2, local=work)
    folder = saved(federate(rounds=1, local=work, model=make(MLP(hidden=(16,)), task.spec, seed=0)).model)
    after = federate(rounds=1, local=work, model=make(MLP(hidden=(16,)), task.spec, seed=5), start_from=folder)
    torch.testing.assert_close(after.model, both.model, rtol=1e-5, atol=1e-6)
    assert after.rounds[0].round == 1


def test_what_is_no_checkpoint_of_this_model_is_refused(federate, saved, tmp_path, task):
    def refused() -> str:
        with pytest.raises(ConfigError) as caught:
            federate(start_from=str(tmp_path))
        assert caught.value.field == "federation.start_from"
        return caught.value.expected

    assert "has finished a round" in refused()
    saved(torch.zeros(3))
    assert "of the same model" in refused()
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    assert "whole" in refused()
    size = federate(rounds=1).federation.layout.size
    saved(torch.full((size,), torch.nan))
    assert "finite" in refused()


def test_a_guarantee_would_have_to_count_the_other_runs_rounds(federate, saved):
    folder = saved(federate(rounds=1).model)
    privacy = ClientLevel(delta=1e-3, clip=0.3, noise_multiplier=2.0)
    defense = Defense(aggregation=ClippedMean(), release=CentralGaussian(), privacy=privacy)
    with pytest.raises(ConfigError, match=r"federation\.start_from=.*count the rounds"):
        federate(defense=defense, start_from=folder)
