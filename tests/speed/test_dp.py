"""The benchmark of private steps runs, and refuses to time one that clips to another sum."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from privbench.benchmarks.speed import dp

SMALL = replace(dp.MODELS["cnn"], batch=4)


def test_every_way_is_timed_beside_both_steps_without_privacy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(dp, "MODELS", {"cnn": SMALL})
    # Memory is measured in processes of their own, each of which imports torch: one stands for all.
    grown = dp.memory("cnn", "privbench book_keeping", 2)
    assert 0 < grown < 1
    monkeypatch.setattr(dp, "memory", lambda *_: grown)
    dp.main(["--models", "cnn", "--repeats", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "x" in line and "." in line]
    for name in (dp.PLAIN, dp.OURS, "privbench book_keeping", "privbench vmap", "privbench loop", "opacus ghost"):
        assert sum(row.startswith(name) for row in rows) == 1


def test_another_sum_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    honest = dp.contenders

    def wrong(work: dp.Work, noise: float) -> dict[str, Any]:
        made = honest(work, noise)
        one = made["privbench vmap"]()
        off = dp.Contender(one.step, lambda: one.gradient() + torch.ones(1))
        return {"privbench loop": made["privbench loop"], "privbench vmap": lambda: off}

    monkeypatch.setattr(dp, "contenders", wrong)
    with pytest.raises(AssertionError, match=r"not the same sum.*vmap"):
        dp.check(SMALL)
