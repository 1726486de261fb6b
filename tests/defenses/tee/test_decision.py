"""Decision receipts: replay is exact to the bit, and each thing that differs is named."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.update import Layout
from privbench.defenses.tee import deciding
from privbench.defenses.tee import decision as receipts
from privbench.defenses.tee.deciding import Made, make, replay
from privbench.defenses.tee.decision import Decision, Value
from privbench.defenses.tee.platforms.software import Software, code
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.sealing import model_digest

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
FACTORY = f"{__name__}:network"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 3))


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 6)).astype("f4")


def decided(x: np.ndarray, model: nn.Module | None = None, **more: Any) -> Made:
    return make(model or network(), FACTORY, x, KEY, **more)


def differences(made: Made, opening: bytes | None = None, model: nn.Module | None = None) -> list[str]:
    decision = receipts.verify(made.receipt, PUBLIC)
    return [d.name for d in replay(decision, opening or made.opening, model or network(), FACTORY)]


def resigned(made: Made, **changes: Any) -> Made:
    """What a signer could have stated instead."""
    return replace(made, receipt=receipts.sign(replace(receipts.read(made.receipt)[0], **changes), KEY))


def opened(made: Made, name: str) -> np.ndarray:
    return Value.read(json.loads(made.opening)[name]).array


# Exact, and right.


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency", None])
def test_replay_is_exact(method: str | None, x: np.ndarray):
    assert differences(decided(x, method=method)) == []
    assert differences(decided(x, method=method, seed=7, target=2)) == []


def test_replay_is_exact_for_a_convolution():
    x = np.random.default_rng(0).normal(size=(3, 1, 12, 12))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 10))
    made = decided(x, model)
    assert differences(made, model=model) == []
    assert opened(made, "explanation").shape == x.shape


def test_a_random_model_is_exact_under_its_seed(x: np.ndarray):
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    made = decided(x, Noisy(), method=None, seed=5)
    assert differences(made, model=Noisy()) == []
    assert differences(resigned(made, seed=6), model=Noisy()) == ["output"]


def test_pytorch_is_left_as_it_was(x: np.ndarray):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    torch.set_num_threads(2)
    try:
        decided(x)
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (2, False)
    finally:
        torch.set_num_threads(1)
    torch.manual_seed(3)
    with deciding.deterministic(9):
        torch.rand(5)
    assert torch.rand(1) == expected


def test_the_output_is_the_models_in_evaluation(x: np.ndarray):
    made, model = decided(x), network().eval()
    with torch.no_grad():
        assert opened(made, "output").tobytes() == model(torch.from_numpy(x)).numpy().tobytes()
    assert opened(made, "input").tobytes() == x.tobytes()


def test_explanations_of_a_linear_model_are_its_weights(x: np.ndarray):
    """Integrated gradients of w x + b from 0 are w x; saliency is |w| (Sundararajan et al. 2017, section 3)."""
    model = nn.Linear(6, 3)
    weights = model.weight.detach().numpy()
    predicted = opened(decided(x, model), "output").argmax(1)
    np.testing.assert_allclose(opened(decided(x, model), "explanation"), weights[predicted] * x, rtol=1e-5)
    np.testing.assert_allclose(opened(decided(x, model, target=1), "explanation"), weights[1] * x, rtol=1e-5)
    found = opened(decided(x, model, method="saliency", target=2), "explanation")
    np.testing.assert_allclose(found, np.abs(weights[[2, 2]]), rtol=1e-6)


def test_integrated_gradients_are_complete(x: np.ndarray):
    """They sum to f(x) - f(0) (Sundararajan et al. 2017, proposition 1)."""
    model = network().eval()
    with torch.no_grad():
        gain = (model(torch.from_numpy(x)) - model(torch.zeros(2, 6)))[:, 1]
    np.testing.assert_allclose(opened(decided(x, target=1), "explanation").sum(1), gain.numpy(), atol=1e-4)


def test_a_regression_has_no_classes(x: np.ndarray):
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    assert differences(decided(x, model), model=model) == []
    with pytest.raises(ConfigError, match="target=0"):
        decided(x, model, target=0)


def test_the_vectors_digest_is_that_of_round_receipts():
    model = network()
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    flat = torch.cat([every[n].reshape(-1) for n in Layout.of(model).names])
    assert deciding.vector_digest(model) == model_digest(flat).hex()


def test_the_states_digest_tells_everything_apart():
    seen = {deciding.state_digest(network())}
    for name in ("0.weight", "1.running_mean", "1.num_batches_tracked", "4.bias"):
        model = network()
        model.state_dict()[name].view(-1)[0] += 1
        seen.add(deciding.state_digest(model))
    seen.add(deciding.state_digest(network().double()))
    model = network()
    model.register_buffer("empty", torch.empty(0), persistent=False)
    seen.add(deciding.state_digest(model))
    for kind in (torch.int32, torch.float32):  # the same bits
        model = network()
        model.register_buffer("bits", torch.ones(1).view(kind))
        seen.add(deciding.state_digest(model))
    assert len(seen) == 9
    assert deciding.state_digest(network()) in seen


# Each difference by its name.


def test_other_weights(x: np.ndarray):
    assert differences(decided(x), model=network(seed=1)) == ["model", "output", "explanation"]


def test_one_bit_of_a_weight(x: np.ndarray):
    model = network()
    with torch.no_grad():
        weight = dict(model.named_parameters())["4.weight"].view(torch.int32)
        weight[0, 0] ^= 1
    assert "model" in differences(decided(x), model=model)


@pytest.mark.parametrize("name", ["input", "output", "explanation"])
def test_an_altered_opening(name: str, x: np.ndarray):
    made = decided(x)
    said = json.loads(made.opening)
    raw = bytearray(base64.b64decode(said[name]["data"]))
    raw[0] ^= 1
    altered = {**said, name: {**said[name], "data": base64.b64encode(raw).decode()}}
    assert name in differences(made, json.dumps(altered).encode())
    salted = {**said, name: {**said[name], "salt": "00" * 32}}
    assert differences(made, json.dumps(salted).encode()) == [name]
    reshaped = {**said, name: {**said[name], "shape": [1, *said[name]["shape"]]}}
    if name != "input":
        assert differences(made, json.dumps(reshaped).encode()) == [name]


def test_values_that_were_never_computed(x: np.ndarray):
    """A signer who states an output of his own is found out by the replay."""
    made = decided(x)
    said = json.loads(made.opening)
    for name in ("output", "explanation"):
        false = Value.salted(opened(made, name) + np.float32(1))
        opening = json.dumps({**said, name: false.plain()}).encode()
        stated: Any = false.commitment(name)
        if name == "explanation":
            stated = {**(receipts.read(made.receipt)[0].explanation or {}), "commitment": stated}
        decision = receipts.read(resigned(made, **{name: stated}).receipt)[0]
        (found,) = replay(decision, opening, network(), FACTORY)
        assert found.name == name
        assert "largest distance 1" in found.reason


@pytest.mark.parametrize(
    "changes",
    [{"privbench": "0" * 96}, {"factory": "os:getcwd"}, {"sources": {"mine": "0" * 64}}],
)
def test_other_code(changes: dict[str, Any], x: np.ndarray):
    made = decided(x)
    altered = resigned(made, code={**receipts.read(made.receipt)[0].code, **changes})
    assert differences(altered) == ["code"]


@pytest.mark.parametrize(
    "changes",
    [{"threads": 2}, {"torch": "1.0"}, {"captum": "0.1"}, {"cpu_capability": "none"}, {"dtype": "x"}, {"more": 1}],
)
def test_another_environment(changes: dict[str, Any], x: np.ndarray):
    made = decided(x)
    altered = resigned(made, environment={**receipts.read(made.receipt)[0].environment, **changes})
    (found,) = replay(receipts.verify(altered.receipt), altered.opening, network(), FACTORY)
    assert found.name == "environment"
    assert next(iter(changes)) in found.reason


def test_the_sources_are_those_of_factory_and_classes(x: np.ndarray):
    class Own(nn.Linear):
        pass

    found = deciding.sources(nn.Sequential(Own(6, 3)), FACTORY)
    assert set(found) == {__name__}
    assert set(deciding.sources(nn.Sequential(Own(6, 3)), "json.decoder:make")) == {__name__, "json.decoder"}
    assert deciding.sources(nn.Linear(1, 1), "privbench.benchmarks.x:make") == {}


# The signature.


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_altered_byte_is_refused(data: st.DataObject):
    raw = bytearray(SIGNED.receipt)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Refused) as caught:
        receipts.verify(bytes(raw))
    assert caught.value.name in ("unsigned_receipt", "malformed_receipt")


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=300))
def test_other_bytes_are_malformed(raw: bytes):
    with pytest.raises(Refused, match="malformed_receipt"):
        receipts.verify(raw)


SIGNED = decided(np.ones((1, 6), "f4"), method=None)


def test_another_key(x: np.ndarray):
    made = decided(x)
    decision = receipts.read(made.receipt)[0]
    forged = receipts.sign(decision, Ed25519PrivateKey.generate())
    with pytest.raises(Refused, match="unsigned_receipt"):
        receipts.verify(forged)
    own = Ed25519PrivateKey.generate()
    forged = receipts.sign(replace(decision, key=own.public_key().public_bytes_raw().hex()), own)
    assert receipts.verify(forged).key != decision.key
    with pytest.raises(Refused, match="foreign_key"):
        receipts.verify(forged, PUBLIC)


@pytest.mark.parametrize(
    "changes",
    [
        {"input": "0"},
        {"seed": -1},
        {"seed": 1 << 53},
        {"seed": True},
        {"environment": {"x": 1.5}},
        {"explanation": {"method": "saliency"}},
        {"explanation": {"method": "saliency", "absolute": False, "target": 0, "commitment": "0" * 64}},
        {"explanation": {"method": [], "target": 0, "commitment": "0" * 64}},
        {"evidence": {"report": "x"}},
        {"evidence": {"report": "!", "certificates": []}},
        {"time": "2026-01-01T00:00:00"},
        {"code": {}},
        {"model": {"state": "0" * 64}},
    ],
)
def test_what_says_something_else_is_never_signed(changes: dict[str, Any], x: np.ndarray):
    with pytest.raises(Refused, match="malformed_receipt"):
        resigned(decided(x), **changes)


def test_the_public_receipt_hides_input_output_and_explanation(x: np.ndarray):
    """Same model, same input: nothing that depends on the values is the same twice; the predicted class is left out."""
    one, other = (receipts.read(decided(x).receipt)[0] for _ in range(2))
    assert not {one.input, one.output} & {other.input, other.output}
    assert one.explanation is not None
    assert other.explanation is not None
    assert one.explanation["commitment"] != other.explanation["commitment"]
    assert one.explanation["target"] == "predicted"
    assert (one.model, one.code, one.environment) == (other.model, other.code, other.environment)


# Made inside a guest.

GUEST = """
import json
from multiprocessing.connection import Listener
import msgpack
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

def make():
    return nn.Linear(4, 2)

def serve(platform, socket):
    from privbench.defenses.tee import deciding
    with Listener(socket, "AF_UNIX") as listener, listener.accept() as connection:
        x = np.frombuffer(connection.recv_bytes(), "<f4").reshape(1, 4)
        with deciding.deterministic(0):
            model = make()
        key = Ed25519PrivateKey.generate()
        made = deciding.make(model, "privbench.defenses.tee.decider:make", x, key, platform=platform)
        connection.send_bytes(msgpack.packb([made.receipt, made.opening]))
"""
PROGRAM = "privbench.defenses.tee.decider:serve"
PATCH = {"defenses/tee/decider.py": GUEST.encode()}


@pytest.fixture(scope="module")
def platform() -> Iterator[Software]:
    with Software() as made:
        yield made


def test_a_guests_decision_is_attested(platform: Software):
    guest = platform.launch(PROGRAM, patches=PATCH)
    guest.connection.send_bytes(np.ones(4, "<f4").tobytes())
    receipt, opening = msgpack.unpackb(guest.connection.recv_bytes())
    decision = receipts.verify(receipt)
    fields = {"measurements": (guest.measurement,), "vmpl": 0, "allow": frozenset(["software-tee"])}
    verdict = receipts.attested(decision, fields, datetime.now(UTC), platform.root)
    assert verdict is not None
    assert (verdict.failed, verdict.assurance) == ([], "software")
    with deciding.deterministic(0):
        model = nn.Linear(4, 2)
    # Its code is the suite's with a program added: another measurement than that of the suite alone.
    assert decision.code["privbench"] == code.measure(code.installed() | PATCH, deciding.PROGRAM).hex()
    assert [d.name for d in replay(decision, opening, model, decision.code["factory"])] == ["code"]
    # Evidence about one key is none about another.
    other = receipts.sign(replace(decision, key=PUBLIC.hex()), KEY)
    verdict = receipts.attested(receipts.verify(other), fields, datetime.now(UTC), platform.root)
    assert verdict is not None
    assert verdict.failed == ["report_data"]
    strict = {**fields, "allow": frozenset()}
    verdict = receipts.attested(decision, strict, datetime.now(UTC), platform.root)
    assert verdict is not None
    assert verdict.failed == ["software_tee"]


def test_no_evidence_is_no_verdict(x: np.ndarray):
    decision = receipts.verify(decided(x).receipt)
    assert receipts.attested(decision, {"measurements": "any"}, datetime.now(UTC)) is None
    with pytest.raises(ConfigError, match=r"policy\.nonce"):
        receipts.attested(decision, {"measurements": "any", "nonce": bytes(16)}, datetime.now(UTC))


# What doesn't fit.


@pytest.mark.parametrize(
    ("x", "more", "field"),
    [
        (np.ones((1, 5), "f4"), {}, "input"),
        (np.ones((1, 6), "i8"), {}, "input"),
        (np.ones((1, 6), "?"), {}, "input"),
        (np.float32(1.0).reshape(()), {}, "input"),
        (np.ones((0, 6), "f4"), {}, "input"),
        (np.full((1, 6), np.nan), {}, "input"),
        (np.full((1, 6), 1e300), {}, "input"),
        (np.ones((1, 6), "f4"), {"target": 3}, "target"),
        (np.ones((1, 6), "f4"), {"target": -1}, "target"),
        (np.ones((1, 6), "f4"), {"method": "lime"}, "explanation"),
        (np.ones((1, 6), "f4"), {"seed": -1}, "seed"),
        (np.ones((1, 6), "f4"), {"model": nn.Flatten(0)}, "model"),
        (np.ones((1, 6), "i8"), {"model": nn.Sequential(nn.Embedding(2, 3), nn.Flatten())}, "explanation"),
        (np.ones((1, 6), "f4"), {"model": nn.Unflatten(1, (2, 3))}, "explanation"),
    ],
)
def test_what_does_not_fit_is_named(x: np.ndarray, more: dict[str, Any], field: str):
    with pytest.raises(ConfigError) as caught:
        decided(x, **more)
    assert caught.value.field == field


def test_tokens_can_be_decided_without_an_explanation():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten())
    made = decided(np.array([[1, 2], [3, 4]], "i4"), model, method=None)
    assert differences(made, model=model) == []


def test_without_captum_the_message_says_what_to_install(x: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"pip install 'privbench\[explain\]'"):
        decided(x)
    assert differences(decided(x, method=None)) == []


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=99) | st.dictionaries(st.text(max_size=5), st.integers()).map(lambda d: str(d).encode()))
def test_other_openings_are_bad_input(raw: bytes):
    with pytest.raises(ConfigError, match="opening"):
        replay(receipts.read(SIGNED.receipt)[0], raw, network(), FACTORY)


@pytest.mark.parametrize("field", ["salt", "dtype", "shape", "data"])
@pytest.mark.parametrize("value", [None, "", 7, [], "zz", "<f2", [9], "00", [[1]]])
def test_openings_with_a_field_of_another_kind(field: str, value: Any):
    said = json.loads(SIGNED.opening)
    said["output"][field] = value
    with pytest.raises(ConfigError, match="opening"):
        replay(receipts.read(SIGNED.receipt)[0], json.dumps(said).encode(), network(), FACTORY)


def test_a_decision_is_read_without_torch():
    program = "import sys, privbench.defenses.tee.decision_command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, env=os.environ).returncode == 0
    assert isinstance(receipts.read(SIGNED.receipt)[0], Decision)
    assert Path(str(deciding.__file__)).name == "deciding.py"
