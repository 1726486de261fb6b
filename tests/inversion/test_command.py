"""``privbench invert``: a dump of a user's own package, outside the suite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from privbench.benchmarks import cli

SCRIPT = Path(sys.executable).with_name("privbench")
MODELS = """
import torch
from torch import nn
from torch.nn import functional as F


def make():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 5, 2, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(216, 10))


def pooled():
    return nn.Sequential(nn.Conv2d(1, 10, 12), nn.Flatten())


ready = make()
number = 5


def broken():
    raise RuntimeError("no such data")


def leaves():
    raise SystemExit(3)


def doubled(output, y):
    return 2 * F.cross_entropy(output, y)
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder like a user's: a package, weights, a gradient and the truth."""
    package = f"user_{tmp_path.name}".replace("-", "_")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / package / "nets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = __import__(f"{package}.nets", fromlist=["make"]).make()
    x, y = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1])
    torch.nn.functional.cross_entropy(model(x), y).backward()
    gradient = [p.grad for p in model.parameters()]
    torch.save(model.state_dict(), "weights.pt")
    torch.save(gradient, "gradient.pt")
    np.savez("truth.npz", x=x.numpy(), y=y.numpy())
    before = model.state_dict()
    torch.save({n: t - 0.1 * g for (n, t), g in zip(before.items(), gradient, strict=True)}, "after.pt")
    return f"{package}.nets"


def invert(capsys, *arguments):
    """Exit status, standard output and error."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["invert", *map(str, arguments)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return stop.value.code, said.out, said.err


def usual(desk, *more):
    return ("--model", f"{desk}:make", "--shape", "1,12,12", "--set", "iterations=2", *more)


def test_the_console_script_attacks_a_dump(desk, tmp_path):
    words = [SCRIPT, "invert", "--model", f"{desk}:make", "--weights", "weights.pt", "--update", "gradient.pt"]
    words += ["--shape", "1,12,12", "--inputs", "truth.npz", "--attack", "idlg", "--set", "iterations=60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*words, "--out", "found"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "best trivial guess" in ended.stdout
    report = json.loads(Path("found/report.json").read_text())
    assert report["metrics"]["psnr_db"] > 30
    assert report["diagnosis"]["verdict"] == "agrees"
    assert report["settings"]["update"] == "gradient.pt"
    assert report["labels"] == [3, 1]
    for name in ("reconstructions.npz", "reconstructions.png", "reconstructions.pdf"):
        assert Path("found", name).stat().st_size > 500


def test_before_and_after_are_an_update(desk, capsys):
    given = ("--before", "weights.pt", "--after", "after.pt", "--learning-rate", 0.1, "--inputs", "truth.npz")
    status, out, _ = invert(capsys, *usual(desk, *given))
    assert status == 0
    assert "is the dump's" in " ".join(out.split())
    status, _, err = invert(capsys, *usual(desk, *given[:5], 0.2, *given[6:]))
    assert status == 2
    assert "learning_rate: the client's was 0.1" in err


def test_a_wrong_dump_is_refused_and_named(desk, capsys):
    torch.save(torch.load("gradient.pt")[::-1], "reversed.pt")
    given = usual(desk, "--update", "reversed.pt", "--inputs", "truth.npz", "--out", "found")
    status, out, err = invert(capsys, *given)
    assert (status, out) == (2, "")
    assert "order: tensors are reversed" in err
    assert "No attack was made" in err
    assert err.count("\n") == 1
    torch.save([2 * g for g in torch.load("gradient.pt")], "sum.pt")
    given = usual(desk, "--update", "sum.pt", "--inputs", "truth.npz")
    assert "reduction: the loss was summed over the 2 records" in invert(capsys, *given)[2]
    # The loss that makes it so is the user's own to name.
    assert invert(capsys, *given, "--loss", f"{desk}:doubled")[0] == 0
    assert invert(capsys, *given, "--force")[0] == 0


def test_a_failed_attack_says_why_and_exits_with_1(desk, capsys):
    torch.save([torch.ones(10, 1, 12, 12), torch.ones(10)], "conv.pt")
    given = ("--model", f"{desk}:pooled", "--shape", "1,12,12", "--update", "conv.pt", "--out", "found")
    status, _, err = invert(capsys, *given)
    assert status == 1
    assert "the attack failed: labels can't be inferred: no trained linear layer has 10 outputs" in err
    assert json.loads(Path("found/report.json").read_text())["status"] == "failed"


def test_random_weights_are_pointed_out(desk, capsys):
    status, out, _ = invert(capsys, *usual(desk, "--update", "gradient.pt", "--labels", "3,1"))
    assert status == 0
    assert "weights are the factory's own" in out
    assert "side information" in out
    status, *_ = invert(capsys, *usual(desk, "--update", "gradient.pt"), "--model", f"{desk}:ready", "--records", 2)
    assert status == 0


def test_a_pruned_update(desk, capsys):
    torch.save([torch.where(g.abs() > g.abs().mean(), g, 0.0) for g in torch.load("gradient.pt")], "sparse.pt")
    given = usual(desk, "--update", "sparse.pt", "--inputs", "truth.npz")
    status, _, err = invert(capsys, *given)
    assert status == 2
    assert "the client pruned it" in err
    status, out, _ = invert(capsys, *given, "--pruned", "--out", "found")
    assert status == 0
    assert "was taken for pruned" in out
    assert json.loads(Path("found/report.json").read_text())["settings"]["pruned"] is True


def test_formats(desk, capsys):
    gradient = torch.load("gradient.pt")
    names = list(torch.load("weights.pt"))
    np.savez("list.npz", *(g.numpy() for g in gradient))
    np.savez("named.npz", **{n: g.numpy() for n, g in zip(names, gradient, strict=True)})
    flat = torch.cat([g.reshape(-1) for g in gradient])
    np.save("flat.npy", flat.numpy())
    torch.save(flat, "flat.pt")
    for file in ("list.npz", "named.npz", "flat.npy", "flat.pt"):
        status, out, err = invert(capsys, *usual(desk, "--update", file, "--inputs", "truth.npz"))
        assert status == 0, err
        assert "relative error" in out


BAD = {
    "model=nets: module:name": ["--model", "nets"],
    "model=no.such:make: something to import (ModuleNotFoundError": ["--model", "no.such:make"],
    "DESK:nobody: something to import (AttributeError": ["--model", "DESK:nobody"],
    "DESK:broken: to be callable without arguments (RuntimeError: no such data)": ["--model", "DESK:broken"],
    "DESK:leaves: to be callable without arguments (SystemExit: 3)": ["--model", "DESK:leaves"],
    "DESK:number: a function, a class or a module, it is a int": ["--model", "DESK:number"],
    "DESK:doubled: to be callable without arguments (TypeError": ["--model", "DESK:doubled"],
    "weights=no.pt: a file that is there": ["--weights", "no.pt"],
    "weights=gradient.pt: a state dict": ["--weights", "gradient.pt"],
    "weights=truth.npz: weights of this model; without 0.weight": ["--weights", "truth.npz"],
    "update=no.pt: a file that is there": ["--update", "no.pt"],
    "update=x.pkl: a file .pt, .pth": ["--update", "x.pkl"],
    "update=gradient.pt: --update FILE, or --before": ["--before", "weights.pt", "--after", "after.pt"],
    "update=weights.pt: a gradient or w_after - w_before; it is a state dict": ["--update", "weights.pt"],
    "momentum=0.9: 0 with kind=gradient": ["--momentum", "0.9"],
    "after=None: both --before FILE and --after FILE": ["--before", "weights.pt"],
    "inputs=gradient.pt: two arrays named x and y": ["--inputs", "gradient.pt"],
    "shape=[3, 12, 12]: the shape of one input that the model takes (RuntimeError": ["--shape", "3,12,12"],
    "argument --shape: a,b: whole numbers": ["--shape", "a,b"],
    "argument --mean: x: numbers": ["--mean", "x"],
    "labels=cat: one of inferred": ["--labels", "cat"],
    "labels=known: numbers such as 3,1,4": ["--labels", "known"],
    "labels=[11]: labels from 0 to 9": ["--labels", "11"],
    "set=iterations: FIELD=VALUE": ["--set", "iterations"],
    "set=iterations=1,2: FIELD=VALUE": ["--set", "iterations=1,2"],
    "attack.iterations=x: expected int": ["--set", "iterations=x"],
    "attack.steps=3: unknown field of InvertingGradients; it has: iterations": ["--set", "steps=3"],
    "attack=best: one of dlg": ["--attack", "best"],
    "loss=DESK:number: a function of output and labels": ["--loss", "DESK:number"],
    "learning_rate=None: the client's": ["--kind", "update"],
    "File exists": ["--out", "gradient.pt"],
    "the following arguments are required: --model, --shape": None,
}


@pytest.mark.parametrize("message", BAD, ids=BAD)
def test_bad_input_is_one_line_that_names_it(message, desk, capsys):
    given = BAD[message]
    base = [] if given is None else [*usual(desk), "--update", "gradient.pt"]
    status, out, err = invert(capsys, *base, *(a.replace("DESK", desk) for a in given or ()))
    assert status == 2
    assert message.replace("DESK", desk) in err
    assert out == ""
    if "usage:" not in err:
        assert err.count("\n") == 1


def test_help(capsys):
    status, out, _ = invert(capsys, "--help")
    assert status == 0
    assert "privbench invert --model mymodels:make" in out
    assert "idlg" in out
