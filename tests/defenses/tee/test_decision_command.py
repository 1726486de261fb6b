"""``privbench attest decision`` and the two documents: commands work, differences are named, bad input is one line."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from torch import nn

from privbench.defenses.tee import decision as receipts
from privbench.defenses.tee import decision_command
from privbench.defenses.tee.platforms.platform import Evidence, Unavailable
from privbench.defenses.tee.platforms.sev_snp import SEVSNP
from privbench.defenses.tee.platforms.software import authority, firmware

ROOT = Path(__file__).parents[3]
MODULE = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

def other():
    return nn.Linear(4, 3)

def fails():
    raise OSError("no such thing")

three = 3
"""
Command = Callable[..., tuple[int, str, str]]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="privbench attest")
    decision_command.add(parser.add_subparsers(dest="action", required=True))
    return parser.parse_args(arguments)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``privbench attest decision ...``: status, output, and an error of one line."""

    def call(*words: Any) -> tuple[int, str, str]:
        status = decision_command.run(parse(["decision", *map(str, words)]))
        out, err = capsys.readouterr()
        assert err.count("\n") == (status == 2)
        assert not (status == 2 and out)
        return status, out, err

    return call


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A user's folder: a module of models of its own name, weights in both forms, an input."""
    name = "mine_" + re.sub(r"\W", "_", request.node.name)
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    state = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    np.savez(tmp_path / "weights.npz", **{k: v.numpy() for k, v in state.items()})
    state["0.bias"][0] += 1
    torch.save(state, tmp_path / "other.pt")
    np.save(tmp_path / "x.npy", np.array([[0.3, -1.2, 0.7, 2.0]]))
    (tmp_path / "name").write_text(name)
    return tmp_path


def model(desk: Path, weights: str | None = "weights.pt", factory: str = "make") -> list[str]:
    own = ["--model", f"{(desk / 'name').read_text()}:{factory}"]
    return own if weights is None else [*own, "--weights", str(desk / weights)]


def make(command: Command, desk: Path, *more: Any) -> Path:
    out = desk / "out"
    status, said, _ = command("make", *model(desk), "--input", desk / "x.npy", "--key", "new", "--out", out, *more)
    assert status == 0
    assert "assurance none" in said
    return out


def test_make_verify_replay(command: Command, desk: Path):
    out = make(command, desk)
    modes = {p.name: p.stat().st_mode & 0o077 for p in out.iterdir()}
    assert (modes["opening.json"], modes["key.pem"]) == (0, 0)
    status, said, _ = command("verify", out / "decision.json")
    assert status == 0
    assert "the receipt's own word" in said
    assert "accepted; assurance none" in said
    for weights in ("weights.pt", "weights.npz"):
        status, said, _ = command("replay", out, *model(desk, weights))
        assert (status, said.splitlines()[-1]) == (0, "bit-exact; assurance none")
    public = re.search(r"signed by +(\w+)", said)
    assert public is not None
    assert command("verify", out / "decision.json", "--public-key", public[1])[0] == 0
    status, said, _ = command("verify", out / "decision.json", "--public-key", "00" * 32)
    assert status == 1
    assert "refused: foreign_key" in said


def test_a_key_is_used_again(command: Command, desk: Path):
    key = make(command, desk) / "key.pem"
    more = ["--input", desk / "x.npy", "--key", key, "--out", desk / "again", "--explanation", "none", "--seed", 4]
    assert command("make", *model(desk), *more)[0] == 0
    assert not (desk / "again" / "key.pem").exists()
    first, second = (receipts.read((desk / n / "decision.json").read_bytes())[0] for n in ("out", "again"))
    assert first.key == second.key
    assert (second.explanation, second.seed) == (None, 4)
    assert command("replay", desk / "again", *model(desk))[0] == 0


@pytest.mark.parametrize("more", [["--explanation", "saliency"], ["--target", "2"], ["--explanation", "none"]])
def test_explanations(more: list[str], command: Command, desk: Path):
    assert command("replay", make(command, desk, *more), *model(desk))[0] == 0


def names(command: Command, *words: Any) -> list[str]:
    status, said, _ = command("replay", *words, "--json")
    shown = json.loads(said)
    assert status == 1
    assert shown["verdict"] == "differs"
    return [d["name"] for d in shown["differences"]]


def test_differences_have_names(command: Command, desk: Path):
    out = make(command, desk)
    assert names(command, out, *model(desk, "other.pt")) == ["model", "output", "explanation"]
    assert "code" in names(command, out, *model(desk, None, "other"))
    said = json.loads((out / "opening.json").read_text())
    (out / "opening.json").write_text(json.dumps({**said, "output": {**said["output"], "salt": "00" * 32}}))
    assert names(command, out, *model(desk)) == ["output"]


def test_a_changed_module_is_other_code(command: Command, desk: Path):
    out = make(command, desk)
    path = next(desk.glob("mine_*.py"))
    path.write_text(MODULE + "# changed\n")
    assert names(command, out, *model(desk)) == ["code"]


def test_an_altered_receipt_is_refused_before_anything_is_computed(command: Command, desk: Path):
    out = make(command, desk)
    raw = bytearray((out / "decision.json").read_bytes())
    raw[-20] ^= 1
    (out / "decision.json").write_bytes(raw)
    for words in (["verify", out / "decision.json"], ["replay", out, "--model", "no.such:thing"]):
        status, said, _ = command(*words, "--json")
        shown = json.loads(said)
        assert (status, shown["verdict"], shown["decision"]) == (1, "refused", None)
        assert shown["refusal"]["name"] in ("unsigned_receipt", "malformed_receipt")


def test_the_receipts_factory_is_never_imported(command: Command, desk: Path):
    """A stranger's receipt names a module; replay imports the one on the command line alone."""
    out = make(command, desk)
    trap = desk / "trap.py"
    trap.write_text(f"open({str(desk / 'sprung')!r}, 'w')\ndef make(): pass\n")
    key = decision_command._private_key(out / "key.pem")
    decision = receipts.read((out / "decision.json").read_bytes())[0]
    said = {**decision.__dict__, "code": {**decision.code, "factory": "trap:make"}}
    (out / "decision.json").write_bytes(receipts.sign(receipts.Decision(**said), key))
    assert names(command, out, *model(desk)) == ["code"]
    assert not (desk / "sprung").exists()


# Evidence.


def test_without_a_guest_there_is_no_evidence(
    command: Command, desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def unavailable(self: SEVSNP, report_data: bytes) -> Evidence:
        raise Unavailable("no /dev/sev-guest")

    monkeypatch.setattr(SEVSNP, "evidence", unavailable)
    words = ["make", *model(desk), "--input", str(desk / "x.npy"), "--key", "new", "--out", str(desk / "out")]
    assert decision_command.run(parse(["decision", *words, "--evidence", "sev-snp"])) == 1
    assert "no evidence: no /dev/sev-guest" in capsys.readouterr().err
    assert not (desk / "out").exists()


def test_evidence_is_judged_by_a_policy(command: Command, desk: Path, monkeypatch: pytest.MonkeyPatch):
    chip = authority.Authority().chip()
    launched = firmware.Launched(b"m" * 48)
    monkeypatch.setattr(SEVSNP, "evidence", lambda self, data: firmware.evidence(chip, launched, data))
    out, policy, root = desk / "out", desk / "policy.yaml", desk / "root.der"
    words = ["--input", desk / "x.npy", "--key", "new", "--out", out, "--evidence", "sev-snp"]
    status, said, _ = command("make", *model(desk), *words)
    assert status == 0
    assert "with evidence, not verified" in said
    assert not (out / "key.pem").exists()
    root.write_bytes(chip.certificates[2])
    policy.write_text(f"measurements: [{(b'm' * 48).hex()}]\nallow: [software-tee]\n")
    status, said, _ = command("verify", out / "decision.json")
    assert status == 0
    assert "not judged" in said
    assert said.endswith("assurance none\n")
    judged = ["--policy", policy, "--root", root]
    status, said, _ = command("replay", out, *model(desk), *judged)
    assert (status, said.splitlines()[-1]) == (0, "bit-exact; assurance software")
    status, said, _ = command("verify", out / "decision.json", "--policy", policy)
    assert status == 1
    assert "refused: evidence: root_key" in said
    policy.write_text("measurements: any\nreport_data: any\n")
    assert "software_tee" in command("verify", out / "decision.json", *judged)[1]


def test_a_policy_without_evidence_is_a_refusal(command: Command, desk: Path):
    out, policy = make(command, desk), desk / "policy.yaml"
    policy.write_text("measurements: any\n")
    status, said, _ = command("replay", out, *model(desk), "--policy", policy)
    assert status == 1
    assert "refused: no_evidence" in said
    policy.write_text(f"measurements: any\nreport_data: {'00' * 64}\n")
    assert "policy.report_data" in command("verify", out / "decision.json", "--policy", policy)[2]


# Bad usage.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"--model": "nothing"}, "model=nothing"),
        ({"--model": "no.such.module:make"}, "model=no.such.module:make"),
        ({"--model": "MINE:fails"}, "no such thing"),
        ({"--model": "MINE:three"}, "MINE:three"),
        ({"--model": "MINE:absent"}, "MINE:absent"),
        ({"--model": "os:getcwd"}, "a torch.nn.Module, not str"),
        ({"--weights": "DESK/nowhere.pt"}, "weights="),
        ({"--weights": "DESK/x.npy"}, "weights="),
        ({"--weights": "DESK/damaged.pt"}, "weights="),
        ({"--weights": "DESK/damaged.npz"}, "weights="),
        ({"--weights": "DESK/pickled.pt"}, "weights="),
        ({"--weights": "DESK/pickled.npz"}, "weights="),
        ({"--weights": "DESK/list.pt"}, "a state dict"),
        ({"--weights": "DESK/foreign.pt"}, "the model's own"),
        ({"--input": "DESK/nowhere.npy"}, "input="),
        ({"--input": "DESK/weights.npz"}, "input="),
        ({"--input": "DESK/pickled.npy"}, "input="),
        ({"--input": "DESK/text.npy"}, "input="),
        ({"--input": "/dev/zero"}, "input="),
        ({"--key": "DESK/nowhere"}, "key="),
        ({"--key": "DESK/text.npy"}, "key="),
        ({"--key": "DESK/p384.pem"}, "key="),
        ({"--key": "/dev/zero"}, "key="),
        ({"--out": "DESK"}, "out="),
        ({"--explanation": "lime"}, "explanation=lime"),
        ({"--target": "3"}, "target=3"),
        ({"--seed": "-1"}, "seed=-1"),
        ({"--evidence": "sev-snp", "--key": "DESK/p384.pem"}, "key="),
    ],
)
def test_bad_usage_names_the_option(changes: dict[str, str], named: str, command: Command, desk: Path):
    key = generate_private_key(SECP384R1())
    (desk / "p384.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (desk / "damaged.pt").write_bytes((desk / "weights.pt").read_bytes()[:-200])
    (desk / "damaged.npz").write_bytes((desk / "weights.npz").read_bytes()[:300])
    torch.save({"0.weight": Path("x")}, desk / "pickled.pt")
    torch.save([torch.ones(1)], desk / "list.pt")
    torch.save({"0.weight": torch.ones(1)}, desk / "foreign.pt")
    np.savez(desk / "pickled.npz", a=np.array([{}]))
    np.save(desk / "pickled.npy", np.array([{}]))
    (desk / "text.npy").write_text("text")
    given = {"--model": "MINE:make", "--weights": "DESK/weights.pt", "--input": "DESK/x.npy", "--key": "new"}
    given |= {"--out": "DESK/out", **changes}
    name = (desk / "name").read_text()
    words = [w.replace("DESK", str(desk)).replace("MINE", name) for pair in given.items() for w in pair]
    status, _, err = command("make", *words)
    assert status == 2
    assert named.replace("MINE", name) in err
    assert not (desk / "out").exists()


class Sprung:
    """Unpickling one writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_weights_execute_nothing(command: Command, desk: Path):
    torch.save({"0.weight": Sprung(desk / "sprung")}, desk / "trap.pt")
    words = ["--input", desk / "x.npy", "--key", "new", "--out", desk / "out"]
    assert "weights=" in command("make", *model(desk, "trap.pt"), *words)[2]
    assert not (desk / "sprung").exists()


def test_bad_usage_of_verify_and_replay(command: Command, desk: Path):
    out = make(command, desk)
    receipt = out / "decision.json"
    assert "receipt=" in command("verify", desk / "nowhere")[2]
    assert "public_key=" in command("verify", receipt, "--public-key", "xyz")[2]
    assert "public_key=" in command("verify", receipt, "--public-key", "00")[2]
    assert "root=" in command("verify", receipt, "--root", receipt)[2]
    assert "weights=" in command("replay", out, *model(desk, "nowhere.pt"))[2]
    (out / "opening.json").write_text("{}")
    assert "opening=" in command("replay", out, *model(desk))[2]
    (out / "opening.json").unlink()
    assert "opening=" in command("replay", out, *model(desk))[2]


# The documents.


def blocks(page: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def shown(page: str, folder: Path) -> None:
    """Write the files that a document shows."""
    for block in blocks(page):
        if found := re.match(r"# (\w+\.py)\n", block):
            (folder / found[1]).write_text(block)


def test_the_commands_of_the_document_work(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch):
    shown("decisions.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)
    lines = [line for block in blocks("decisions.md") for line in block.splitlines()]
    subprocess.run([sys.executable, "prepare.py"], check=True, cwd=tmp_path)
    said = ""
    for line in (one for one in lines if one.startswith("privbench attest decision")):
        status, said, _ = command(*shlex.split(line)[3:])
        assert status == 0, line
    assert said.endswith("bit-exact; assurance none\n")
    assert {p.name for p in (tmp_path / "decision").iterdir()} == {"decision.json", "opening.json", "key.pem"}


def test_the_example_of_provisioning_runs(tmp_path: Path):
    shown("provisioning.md", tmp_path)
    ran = subprocess.run([sys.executable, "try_broker.py"], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["the guest has 32 bytes", "released software"]
