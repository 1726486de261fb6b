"""Malformed files: each is refused in one line, never with a traceback, never attacked."""

import io
import pickle
import random
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from privbench.benchmarks import cli
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.update import Layout
from privbench.benchmarks.inversion.dump import make_dump
from privbench.benchmarks.inversion.files import read

MODEL = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
    + b"\n"
)


class Payload:
    """Unpickled, it would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def written(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def arrays(*given, **named) -> bytes:
    file = io.BytesIO()
    np.savez(file, *given, **named)
    return file.getvalue()


def array(value, **more) -> bytes:
    file = io.BytesIO()
    np.save(file, value, **more)
    return file.getvalue()


def sound() -> dict[str, bytes]:
    tensors = [torch.full_like(p, 0.5) for p in MODEL.parameters()]
    flat = torch.cat([t.reshape(-1) for t in tensors])
    return {
        ".pt": written(tensors),
        ".pth": written(dict(zip(MODEL.state_dict(), tensors, strict=True))),
        ".npz": arrays(*(t.numpy() for t in tensors)),
        ".npy": array(flat.numpy()),
    }


def crafted(trace: str) -> list[tuple[str, bytes]]:
    """Files that are well formed, and wrong."""
    one = torch.ones(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both kinds of tensors are on their way out
        quantised = torch.quantize_per_tensor(one, 0.1, 0, torch.qint8)
        nested = torch.nested.as_nested_tensor([one, torch.ones(3)])
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.npy", HUGE)
    values = [
        None, 3, 2.5, "text", b"bytes", True, [], {}, (), [[]], {"a": []}, {"a": {"b": one}}, {1: one}, [one, "x"],
        [1.0, 2.0], {"state_dict": 3}, {"state_dict": {}}, {"epoch": 3}, one.to(torch.complex64), one.to_sparse(),
        quantised, torch.empty(2, device="meta"), torch.ones(0),
        torch.ones(10**5), torch.ones(22, dtype=torch.bool), [one.to_sparse()] * 4, {"0.weight": None}, set(),
        nested, torch.Size([2]), torch.float32,
    ]  # fmt: skip
    files = [(".pt", written(v)) for v in values]
    files += [
        (".pt", written(Payload(trace))),
        (".pt", pickle.dumps(Payload(trace))),
        (".pt", written(MODEL)),
        (".pt", b""),
        (".pt", b"PK\x03\x04"),
        (".npz", b""),
        (".npz", arrays()),
        (".npz", arrays(a=np.array(["x", "y"]))),
        (".npz", arrays(a=np.array([1j]))),
        (".npz", held.getvalue()),
        (".npz", array(np.ones(3))),
        (".npy", b""),
        (".npy", arrays(np.ones(3))),
        (".npy", array(np.array([Payload(trace)], dtype=object), allow_pickle=True)),
        (".npy", array(np.array(["2020-01-01"], dtype="M8[D]"))),
        (".npy", array(np.float64(3))),
        (".npy", HUGE),
        (".safetensors", b"\xff" * 64),
        (".txt", b"1 2 3"),
        ("", b"1 2 3"),
    ]
    return files


def damaged(number: int) -> list[tuple[str, bytes]]:
    """Sound files, cut, flipped, stretched or filled with noise."""
    chance, files = random.Random(0), [*sound().items()]
    found = []
    for k in range(number):
        suffix, content = files[k % len(files)]
        bytes_ = bytearray(content)
        how = k // len(files) % 4
        if how == 0:
            bytes_ = bytes_[: chance.randrange(len(bytes_))]
        elif how == 1:
            for _ in range(chance.choice((1, 8, 64))):
                bytes_[chance.randrange(len(bytes_))] = chance.randrange(256)
        elif how == 2:
            start = chance.randrange(len(bytes_))
            bytes_[start : start + 40] = chance.randbytes(80)
        else:
            bytes_ = bytearray(chance.randbytes(len(bytes_)))
        found.append((suffix, bytes(bytes_)))
    return found


def test_malformed_files_are_refused_or_read(tmp_path, capsys, monkeypatch):
    (tmp_path / "fuzzed_nets.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "trace"
    wrong = crafted(str(trace))
    everything = wrong + damaged(80)
    assert len(everything) > 120
    statuses = {"--update": [], "--weights": [], "--inputs": []}
    torch.save([torch.full_like(p, 0.25) for p in MODEL.parameters()], "sound.pt")
    for k, (suffix, content) in enumerate(everything):
        path = tmp_path / f"file_{k}{suffix}"
        path.write_bytes(content)
        for option, found in statuses.items():
            given = ["--model", "fuzzed_nets:make", "--shape", "4", "--set", "iterations=1", "--update", "sound.pt"]
            with pytest.raises(SystemExit) as stop:
                cli.main(["invert", *given, option, path.name])
            said = capsys.readouterr()
            assert "Traceback" not in said.err, (k, option)
            # A flipped bit can make weights behind which no unit is active: readable, and no good for an attack.
            dead = "the attack failed: the gradient says nothing of the records" in said.err
            assert stop.value.code in (0, 1 if dead else 2, 2), (k, option, said.err)
            if stop.value.code == 2:
                assert said.err.count("\n") == 1, (k, option, said.err)
                assert path.name in said.err or "inputs" in said.err, (k, option, said.err)
            found.append(stop.value.code)
    # What is wrong on purpose is refused, and a flipped bit may change a number alone.
    for found in statuses.values():
        assert set(found[: len(wrong)]) == {2}
    assert not trace.exists()
    assert statuses["--update"].count(2) > 75


@pytest.mark.parametrize("suffix", sound())
def test_the_sound_ones_are_read(suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(sound()[suffix])
    dump = make_dump(read(path, "update"), MODEL, Layout.of(MODEL))
    vector = dump.vector()
    assert vector is not None
    assert vector.tolist() == [0.5] * 23


def test_safetensors_where_the_package_is(tmp_path):
    path = tmp_path / "file.safetensors"
    package = pytest.importorskip("safetensors.torch")
    tensors = {n: torch.full_like(t, 0.5) for n, t in MODEL.state_dict().items()}
    package.save_file(tensors, str(path))
    assert make_dump(read(path, "update"), MODEL, Layout.of(MODEL)).named


def test_a_folder_or_a_name_with_a_zero_byte(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    for name in (tmp_path / "folder.pt", "a\0b.pt", "x" * 5000 + ".pt"):
        with pytest.raises(ConfigError, match="a file that is there"):
            read(name, "update")
