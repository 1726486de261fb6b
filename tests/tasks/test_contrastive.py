"""Contrastive learning as a task: loss, zero-shot classification, triggers on pictures, captions that change."""

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from privbench.attacks.poisoning import Backdoor, Holding, LabelFlip
from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.federation.federation import Federation
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import FederationSettings, LocalWork
from privbench.benchmarks.measures.poisoning import triggered
from privbench.benchmarks.sweep import compose
from privbench.benchmarks.tasks import Contrastive
from privbench.benchmarks.tasks.contrastive import info_nce
from privbench.benchmarks.tasks.models import MLP, DualEncoder, make
from privbench.benchmarks.tasks.models.dual import Dual, Embeddings
from privbench.benchmarks.tasks.pairs import pack, unpack
from privbench.benchmarks.tasks.sources import Digits, Templated
from privbench.benchmarks.tasks.triggers import EdgeCase, Instance, OutOfRange, Patch
from privbench.benchmarks.tasks.vocabulary import words
from privbench.defenses import Defense
from privbench.defenses.accounting import RecordLevel
from privbench.defenses.channel import SecAgg
from privbench.defenses.local import DPSGD

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the digit {}", "a handwritten {}", "the number {} on paper", "{} written by hand")
PROMPTS = ("a photo of a number {} on paper", "the handwritten digit {}")
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def pairs() -> Contrastive:
    """1,442 digits with captions."""
    return Contrastive(Templated(Digits(), TEMPLATES, PROMPTS, NAMES), trigger=Patch(size=2))


@pytest.fixture(scope="module")
def few(pairs) -> Contrastive:
    return replace(pairs, records=200)


@pytest.fixture
def dual(pairs) -> Any:
    return make(DualEncoder(width=4, hidden=8, embedding=8), pairs.spec, seed=0)


@pytest.fixture(scope="module")
def trained(pairs) -> nn.Module:
    """Five epochs on all pairs."""
    model = make(DualEncoder(), pairs.spec, seed=0)
    federation = Federation(
        FederationSettings(clients=1, rounds=5, local=LocalWork(batch_size=64, learning_rate=0.1)), pairs, model
    )
    return learnt(federation)


def learnt(federation: Federation) -> nn.Module:
    from privbench.benchmarks.federation import processes as engines

    side = federation.client_side()
    engine = engines.start(side, 1, torch.device("cpu"), federation.defense.channel.apart)
    try:
        *_, last = federation.run(federation.start(), side, engine)
    finally:
        engine.close()
        side.channel.close()
    federation.layout.write(last.state.model, federation.model)
    return federation.model


def holding(task: Contrastive, records: Any = None) -> Holding:
    train = task.data.train if records is None else records
    return Holding(train, task.spec, task.bound_trigger, 0, task.data.train, task.relabel)


def test_pairs_come_out_as_they_went_in():
    shown, ids = torch.randn(3, 2, 4, 5), torch.tensor([[1, 2**24 - 1, 0]] * 3)
    found = unpack(pack(shown, ids), (2, 4, 5))
    assert torch.equal(found[0], shown)
    assert torch.equal(found[1], ids)


def test_info_nce_of_two_pairs_by_hand():
    picture = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    # Similarities times 2: [[1.2, 0], [1.6, 2]].
    rows = -(1.2 - log(3.3201 + 1)) - (2 - log(4.9530 + 7.3891))
    columns = -(1.2 - log(3.3201 + 4.9530)) - (2 - log(1 + 7.3891))
    assert info_nce(Embeddings(picture, text, torch.tensor([2.0]))).item() == pytest.approx((rows + columns) / 4, 1e-4)


def test_info_nce_is_the_mean_of_two_cross_entropies():
    picture, text = (F.normalize(torch.randn(5, 3, generator=stream(0, name)), dim=1) for name in "ab")
    logits = 7.0 * picture @ text.T
    own = torch.arange(5)
    wanted = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert info_nce(Embeddings(picture, text, torch.tensor([7.0]))).item() == pytest.approx(wanted.item())
    assert info_nce(Embeddings(picture[:0], text[:0], torch.tensor([7.0]))) == 0
    assert info_nce(Embeddings(picture[:1], text[:1], torch.tensor([7.0]))) == 0


def test_the_gradient_is_that_of_the_loss(pairs):
    model = make(DualEncoder(width=1, hidden=2, embedding=2), pairs.spec, seed=1).double()
    assert isinstance(model, Dual)
    x = pairs.data.train.x[:4].double()
    parameters = [p for p in model.parameters() if p.numel() < 300]
    names = [n for n, p in model.named_parameters() if p.numel() < 300]

    def loss(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    inputs = tuple(p.detach().clone().requires_grad_() for p in parameters)
    assert any(n == "log_scale" for n in names)
    assert torch.autograd.gradcheck(lambda *v: info_nce(loss(*v)), inputs)


def test_the_temperature_starts_and_ends_as_clips(dual):
    assert dual.scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        dual.log_scale.fill_(10.0)
    assert dual.scale.item() == pytest.approx(100)


def test_embeddings_have_length_one_and_padding_is_no_word(pairs, dual):
    found = dual(pairs.data.train.x[:9])
    for part in (found.picture, found.text):
        assert torch.allclose(part.norm(dim=1), torch.ones(9))
    _, ids = unpack(pairs.data.train.x[:9], SHAPE)
    longer = torch.cat([ids, torch.zeros(9, 3, dtype=torch.int64)], 1)
    assert torch.allclose(dual.encode_text(longer), found.text)


def test_zero_shot_beats_chance_after_a_short_training(pairs, trained):
    found = pairs.evaluate(trained)
    assert found["accuracy"] > 0.8
    assert {"accuracy", "balanced_accuracy", "auc", "loss"} == set(found)
    rates = triggered(pairs, trained)
    assert rates["triggered_rate"] < 0.3, "nothing was poisoned"


def test_captions_say_the_class_in_a_template_drawn_for_each(pairs):
    train, source = pairs.data.train, pairs.source
    _, ids = unpack(train.x, SHAPE)
    possible = [{tuple(c.tolist()) for c in pairs.pairs.captions[y]} for y in range(10)]
    assert all(tuple(row.tolist()) in possible[y] for row, y in zip(ids, train.y.tolist(), strict=True))
    assert len({tuple(row.tolist()) for row in ids[train.y == 3]}) == len(TEMPLATES)
    again = source.load(None)
    assert torch.equal(again.data.train.x, train.x)
    assert not unpack(pairs.data.test.x, SHAPE)[1].any(), "test pictures have no caption"


@pytest.mark.parametrize(
    "task", ["contrastive_digits", "contrastive_mnist5k", "contrastive_mnist", "contrastive_cifar10"]
)
def test_prompts_are_held_out(task):
    from hydra import compose as made
    from hydra import initialize_config_module

    with initialize_config_module("privbench.conf", version_base="1.3"):
        source = made("config", overrides=[f"task={task}", "name=x"]).task.source
    trained = {tuple(words(t)) for t in source.templates}
    assert len(trained) == 8
    assert len(source.prompts) == 3
    assert not trained & {tuple(words(p)) for p in source.prompts}


def test_a_prompt_that_is_trained_on_is_refused():
    with pytest.raises(ConfigError, match="prompts"):
        Templated(Digits(), TEMPLATES, ("A Photo of the digit, {}",))
    with pytest.raises(ConfigError, match=r"templates.*one \{\}"):
        Templated(Digits(), ("a digit",), PROMPTS)
    with pytest.raises(ConfigError, match="10 words"):
        Templated(Digits(), TEMPLATES, PROMPTS, ("zero",)).load(None)


def test_relabelling_swaps_captions_and_leaves_pictures(few):
    train = few.data.train
    labels = torch.full_like(train.y, 7)
    found = few.relabel(train, labels, stream(0, "poison"))
    before, after = unpack(train.x, SHAPE), unpack(found.x, SHAPE)
    assert torch.equal(before[0], after[0])
    assert torch.equal(found.y, labels)
    wanted = {tuple(c.tolist()) for c in few.pairs.captions[7]}
    written = [tuple(c.tolist()) for c in after[1]]
    assert set(written) == wanted
    assert {written.count(c) for c in wanted} == {200 // len(TEMPLATES)}, "templates take turns"


@pytest.mark.parametrize("count", [0, 1, 5, 64])
def test_exactly_k_pairs_are_poisoned(few, count):
    train = few.data.train
    found = Backdoor(records=count).poison(holding(few), stream(0, "poison"))
    (old, told), (new, tells) = unpack(train.x, SHAPE), unpack(found.x, SHAPE)
    poisoned = found.y != train.y
    assert int(poisoned.sum()) == count
    assert (train.y[poisoned] != 0).all()
    assert (found.y[poisoned] == 0).all()
    assert torch.equal((told != tells).any(1), poisoned)
    marked = Patch(size=2).apply(old, few.spec.picture)
    assert torch.equal(new[poisoned], marked[poisoned])
    assert torch.equal(new[~poisoned], old[~poisoned])


def test_the_picture_alone_gets_the_patch(few):
    trigger, x = few.bound_trigger, few.data.test.x[:5]
    assert trigger is not None
    found = trigger.apply(x, few.spec)
    changed = torch.nonzero((found != x).any(0)).squeeze(1)
    assert set(changed.tolist()) <= {54, 55, 62, 63}
    assert torch.equal(trigger.apply(x[0], few.spec), found[0])
    assert trigger.share(few.spec) == 4 / 64


def test_a_random_place_is_another_in_every_picture(few):
    trigger = replace(few, trigger=Patch(size=2, place="random", colour=0.41)).bound_trigger
    assert trigger is not None
    x = few.data.test.x[:20]
    places = {
        tuple(torch.nonzero(a != b).squeeze(1).tolist()) for a, b in zip(x, trigger.apply(x, few.spec), strict=True)
    }
    assert len(places) > 5


def test_triggers_of_pictures_see_pictures(few):
    edge = replace(few, trigger=EdgeCase(source=1, rarest=0.5)).bound_trigger
    assert edge is not None
    assert (few.data.train.y[edge.carriers(few.data.train)] == 1).all()
    with pytest.raises(ConfigError, match=r"task\.trigger"):
        replace(few, trigger=OutOfRange()).check(1)
    with pytest.raises(ConfigError, match=r"size"):
        replace(few, trigger=Patch(size=9)).check(1)


def test_all_labels_flipped_are_captions_swapped(few):
    train = few.data.train
    found = LabelFlip(to="next").poison(holding(few), stream(0, "poison"))
    assert torch.equal(found.y, (train.y + 1) % 10)
    _, ids = unpack(found.x, SHAPE)
    for y in range(10):
        wanted = {tuple(c.tolist()) for c in few.pairs.captions[y]}
        assert {tuple(c.tolist()) for c in ids[found.y == y]} <= wanted


@pytest.fixture(scope="module")
def targeted(few) -> Contrastive:
    return replace(few, trigger=Instance(record=5))


def test_targeted_poison_is_copies_of_one_test_picture(targeted):
    found = Backdoor(records=6).poison(holding(targeted), stream(0, "poison"))
    train = targeted.data.train
    poisoned = found.y != train.y
    assert int(poisoned.sum()) == 6
    shown, ids = unpack(found.x[poisoned], SHAPE)
    assert torch.equal(shown, unpack(targeted.data.test.x[5:6], SHAPE)[0].expand_as(shown))
    assert {tuple(c.tolist()) for c in ids} == {tuple(c.tolist()) for c in targeted.pairs.captions[0]}


def test_targeted_poison_is_measured_on_that_picture_alone(targeted):
    class Says(nn.Module):
        def __init__(self, answer: int):
            super().__init__()
            self.answer, self.asked, self.scale = answer, 0, torch.ones(1)

        def encode_picture(self, pictures):
            self.asked += len(pictures)
            return F.one_hot(torch.full((len(pictures),), self.answer), 10).float()

        def encode_text(self, ids):
            return torch.eye(10).repeat_interleave(len(ids) // 10, 0)

    for answer, rate in ((0, 1.0), (4, 0.0)):
        model = Says(answer)
        assert triggered(targeted, model)["triggered_rate"] == rate
        assert model.asked == 2


def test_an_instance_of_the_target_class_is_refused(few):
    of_target = int(torch.nonzero(few.data.test.y == 0)[0])
    with pytest.raises(ConfigError, match=r"task\.trigger\.record.*another class"):
        replace(few, trigger=Instance(record=of_target)).check(1)
    with pytest.raises(ConfigError, match=r"0 to 354"):
        replace(few, trigger=Instance(record=355)).check(1)


def test_an_instance_is_a_trigger_of_classification_too(task):
    given = replace(task, trigger=Instance(record=5))
    trigger = given.bound_trigger
    assert trigger is not None
    found = Backdoor(records=3).poison(Holding(task.data.train, task.spec, trigger, 0, task.data.train), stream(0, "p"))
    assert int((found.x == task.data.test.x[5]).flatten(1).all(1).sum()) == 3


def test_the_same_numbers_for_one_and_two_workers(few, dual, federate):
    options: dict[str, Any] = {"task": few, "model": dual, "clients": 4, "poisoner": Backdoor(records=4)}
    one, two = (federate(workers=n, local={"batch_size": 16}, **options) for n in (1, 2))
    assert torch.equal(one.model, two.model)
    assert not torch.equal(one.models[0], one.models[1])


def test_secure_aggregation_carries_pairs(few, dual, federate):
    options: dict[str, Any] = {"task": few, "model": dual, "clients": 4, "rounds": 1, "local": {"batch_size": 16}}
    plain, hidden = federate(**options), federate(**options, defense=Defense(channel=SecAgg()))
    assert torch.allclose(plain.model, hidden.model, atol=1e-3)


def test_dp_sgd_is_refused_by_name(few, dual):
    defense = Defense(local=DPSGD(), privacy=RecordLevel(delta=1e-3, clip=1.0, noise_multiplier=1.0))
    with pytest.raises(ConfigError, match=r"DPSGD.*Contrastive doesn't separate"):
        Federation(FederationSettings(clients=2, rounds=1), few, dual, defense)


def test_models_that_encode_no_pairs_are_refused(few, task):
    with pytest.raises(ConfigError, match="encode_text"):
        make(MLP(), few.spec, 0)
    with pytest.raises(ConfigError, match="takes: pair"):
        make(DualEncoder(), task.spec, 0)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("leakage=inverting_gradients", "leakage"),
        ("inference=loss_threshold", "inference"),
        ("federation.local.augmentation.shift=1", "augmentation.shift"),
        ("defense=tee_clients", "attest_clients"),
    ],
)
def test_what_knows_no_pairs_is_refused(tmp_path, override, field):
    asked = ["task=contrastive_digits", "model=dual_encoder", "task.records=100", "federation.rounds=1"]
    with pytest.raises(ConfigError, match=field):
        compose([*asked, "federation.clients=2", override, f"results_dir={tmp_path}"])


def test_a_configuration_reads_no_data_until_it_is_prepared(monkeypatch):
    from privbench.benchmarks import experiment, sweep

    def fail(*_):
        raise AssertionError("data were read")

    monkeypatch.setattr(Templated, "load", fail)
    from hydra import compose as made
    from hydra import initialize_config_module

    with initialize_config_module("privbench.conf", version_base="1.3"):
        config = sweep.plain(made("config", overrides=["task=contrastive_digits", "task.records=7", "name=x"]))
    assert isinstance(experiment.compose(config).task, Contrastive)
