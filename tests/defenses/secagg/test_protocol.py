"""The protocol's two ends: masks cancel, messages say nothing, drop-outs come back, and nobody gives both secrets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from privbench.benchmarks.federation.update import Layout, Update
from privbench.defenses.channel import RoundRefused
from privbench.defenses.secagg import client as clients
from privbench.defenses.secagg import keys, masks, shares
from privbench.defenses.secagg.client import Masked, Secrets, Unmasking, common_masks, own_mask
from privbench.defenses.secagg.encoding import Encoding, Integers
from privbench.defenses.secagg.parameters import Parameters
from privbench.defenses.secagg.server import Collection, Opened

D = 500


@dataclass
class Cohort:
    """Clients of one round and their server, phase by phase.

    Args:
        number: of clients.
        changes: of the run's parameters.
    """

    number: int = 6
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = Parameters(
            Encoding(1.0, 16, 32, "nearest"), 0.6, self.number, 0, "records", (1000,) * 10, False, "seeded", 0
        )
        self.parameters = replace(plain, **self.changes)
        self.server = Collection(self.parameters, 1)
        self.secrets: dict[int, Secrets] = {}
        self.masked: dict[int, Masked] = {}
        layout = Layout(("w",), ((D,),), 1)
        vectors = torch.randn(self.number, D, generator=torch.Generator().manual_seed(1)) * 0.1
        self.updates = [Update(v, layout, "update", 10 + n, {"clipped": v[:2].sum()}) for n, v in enumerate(vectors)]

    def join(self) -> "Cohort":
        for c in range(self.number):
            given, self.secrets[c] = clients.advertise(self.parameters, c, 1)
            self.server.join(c, given)
        return self

    def share(self, who: list[int] | None = None) -> "Cohort":
        for c in range(self.number) if who is None else who:
            sealed, self.secrets[c] = clients.share(self.parameters, c, self.server.joined, self.secrets[c])
            self.server.share(c, sealed)
        return self

    def send(self, who: list[int] | None = None) -> "Cohort":
        for c in range(self.number) if who is None else who:
            given = self.server.for_client(c)
            made, self.secrets[c] = clients.mask(self.parameters, c, self.updates[c], given, self.secrets[c])
            self.masked[c] = made
            self.server.add(c, made)
        return self

    def ask(self, client: int, asked: Unmasking | None = None) -> dict[int, int]:
        return clients.unmask(self.parameters, client, asked or self.server.unmasking(), self.secrets[client])

    def open(self, who: list[int] | None = None) -> Opened:
        answering = self.server.sent if who is None else who
        return self.server.open({c: self.ask(c) for c in answering}, D)

    def mean(self, who: list[int]) -> torch.Tensor:
        weights = torch.tensor([self.updates[c].records for c in who]).double()
        return (torch.stack([self.updates[c].vector.double() for c in who]) * weights[:, None]).sum(0) / weights.sum()


def test_masks_cancel_in_the_sum_of_all():
    made = Cohort().join().share().send()
    found, everybody = made.open(), list(range(6))
    step = made.parameters.encoding.step
    assert float((found.vector / found.weight - made.mean(everybody)).abs().max()) <= step / 2 * (1 + 1e-9)
    assert (found.weight, found.records) == (sum(range(10, 16)), sum(range(10, 16)))
    clipped = sum(u.records * float(u.extras["clipped"]) for u in made.updates) / found.weight
    assert float(found.extras["clipped"]) / found.weight == pytest.approx(clipped, abs=step)
    assert found.extras["clipped"].shape == ()


def test_equal_weights_sum_records_apart():
    found = Cohort(changes={"weighting": "equal"}).join().share().send().open()
    assert (found.weight, found.records) == (6, sum(range(10, 16)))


@pytest.mark.parametrize("late", [[5], [0, 3]], ids=["one", "two"])
def test_who_drops_out_after_sharing_is_had_back(late: list[int]):
    left = [c for c in range(6) if c not in late]
    made = Cohort().join().share().send(left)
    found = made.open()
    assert found.clients == tuple(left)
    assert found.weight == sum(10 + c for c in left)
    error = (found.vector / found.weight - made.mean(left)).abs().max()
    assert float(error) <= made.parameters.encoding.step / 2 * (1 + 1e-9)


def test_who_joins_without_sharing_is_in_no_mask():
    made = Cohort().join().share([0, 1, 2, 4, 5]).send([0, 1, 2, 4, 5])
    assert made.open().clients == (0, 1, 2, 4, 5)


def test_a_threshold_of_answers_is_enough_to_unmask():
    made = Cohort().join().share().send()
    assert made.server.least == 4
    assert made.open([1, 2, 4, 5]).weight == sum(range(10, 16))


@pytest.mark.parametrize("stage", ["join", "send", "unmask"])
def test_below_the_threshold_nothing_is_unmasked(stage: str):
    made = Cohort().join().share().send()
    steps = {
        "join": lambda: made.server.enough(3, "joined"),
        "send": lambda: made.server.enough(3, "sent an update"),
        "unmask": lambda: made.open([0, 1, 2]),
    }
    with pytest.raises(RoundRefused, match=r"below_threshold: 3 clients .* 4 are needed"):
        steps[stage]()


def test_clients_of_too_small_a_round_refuse_by_themselves():
    made = Cohort(6).join()
    three = {c: made.server.joined[c] for c in range(3)}
    with pytest.raises(RoundRefused, match="below_threshold: 3 clients joined round 1, 4 are needed"):
        clients.share(made.parameters, 0, three, made.secrets[0])
    made.share()
    some = {c: m for c, m in made.server.for_client(0).items() if c < 3}
    with pytest.raises(RoundRefused, match="below_threshold: 3 clients shared keys"):
        clients.mask(made.parameters, 0, made.updates[0], some, made.secrets[0])


def asked_wrongly() -> Mapping[str, Unmasking]:
    return {
        "both_secrets: of client 3": Unmasking((0, 1, 2, 3), (3,)),
        "below_threshold: 3 clients": Unmasking((0, 1, 2), (3, 4, 5)),
        "below_threshold: 4 clients": Unmasking((1, 2, 3, 4), (5,)),  # not the one that is asked
        "below_threshold: 5 clients": Unmasking((0, 1, 2, 3, 9), ()),  # a stranger
    }


@pytest.mark.parametrize(("why", "asked"), asked_wrongly().items())
def test_a_client_refuses_a_server_that_asks_for_too_much(why: str, asked: Unmasking):
    made = Cohort().join().share().send()
    with pytest.raises(RoundRefused, match=why):
        made.ask(0, asked)


def test_a_server_that_tells_clients_different_stories_never_has_both_secrets():
    """Each client gives one share of each other; with a threshold above one half the two sums can't both reach it."""
    made = Cohort().join().share().send()
    everybody = range(6)
    alive = {c: made.ask(c, Unmasking(tuple(everybody), ())) for c in (0, 1, 2)}
    dead = {c: made.ask(c, Unmasking((0, 1, 2, 3, 4), (5,))) for c in (3, 4)}
    assert len(alive) < made.server.least
    assert len(dead) < made.server.least
    wrong = shares.combine({c: given[5] for c, given in dead.items()})
    assert keys.public(wrong) != made.server.joined[5].masking


@pytest.mark.parametrize("joined", range(2, 40))
def test_the_threshold_is_above_half_of_whoever_joined(joined: int):
    parameters = Cohort(changes={"threshold": 0.51, "expected": 4}).parameters
    assert 2 * parameters.least(joined) > joined
    assert replace(parameters, needed=7).least(joined) >= 7


def test_the_own_mask_protects_an_update_that_came_late():
    """The server says that client 5 dropped out and keeps its message: without its own mask it would lie open."""
    made = Cohort().join().share().send()
    made.server.sent.remove(5)
    late = made.masked[5].integers.copy()
    answers = {c: made.ask(c) for c in range(5)}
    private = shares.combine({c: given[5] for c, given in answers.items()})
    assert keys.public(private) == made.server.joined[5].masking
    for other, key in common_masks(private, {c: made.server.joined[c].masking for c in range(5)}).items():
        masks.apply(late, key, -masks.sign(5, other))
    assert uniform(late) > 1e-4, "what is left is as random as before"
    plain = made.parameters.encoding.encode(made.updates[5].vector, torch.Generator()) * np.uint32(15)
    mine = made.secrets[5]
    assert mine.own == 0, "a client forgets what its mask came from, once it has sent"
    assert not np.array_equal(late[:D], plain)


def uniform(integers: Integers) -> float:
    """The p-value of a chi-squared test of the bytes."""
    counts = np.bincount(integers.view(np.uint8), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def test_a_message_alone_is_uniform_and_has_nothing_of_the_update():
    """Chi-squared of the bytes, for every client, and of the difference of two clients' messages."""
    made = Cohort(changes={"keys": "seeded"}).join().share().send()
    plain = made.parameters.encoding.encode(made.updates[0].vector, torch.Generator())
    assert uniform(plain) < 1e-9, "the test sees what isn't masked"
    for masked in made.masked.values():
        assert uniform(masked.integers) > 1e-4
    for one, two in pairwise(made.masked.values()):
        assert uniform(one.integers - two.integers) > 1e-4
    numbers = made.masked[0].integers[:D].astype(np.float64)
    assert abs(float(np.corrcoef(numbers, made.updates[0].vector.numpy())[0, 1])) < 5 / D**0.5


def test_messages_are_those_of_the_round_and_the_seed():
    one, two = (Cohort().join().share().send().masked[0].integers for _ in range(2))
    assert np.array_equal(one, two)
    other = Cohort(changes={"keys": "system"}).join().share().send()
    assert not np.array_equal(one, other.masked[0].integers)
    assert torch.equal(other.open().vector, Cohort().join().share().send().open().vector), "masks change no sum"
    first, second = (clients.advertise(Cohort().parameters, 0, n)[0] for n in (1, 2))
    assert first != second


def test_what_clients_send_holds_no_secret():
    """Keys, own masks and shares of them are nowhere among the bytes that pass through the server before the end."""
    made = Cohort().join()
    private = [v.to_bytes(32, "little") for s in made.secrets.values() for v in (s.sealing, s.masking)]
    made.share()
    private += [s.own.to_bytes(32, "little") for s in made.secrets.values()]
    private += [v.to_bytes(32, "little") for s in made.secrets.values() for v in s.shares]
    made.send()
    keys_sent = b"".join(k.sealing + k.masking for k in made.server.joined.values())
    sealed = b"".join(m for given in made.server.sealed.values() for m in given.values())
    sent = keys_sent + sealed + b"".join(m.integers.tobytes() for m in made.masked.values())
    assert not any(secret in sent for secret in private)


def test_shares_are_for_their_receiver_alone_and_unaltered():
    made = Cohort().join().share().send()
    theirs = made.server.for_client(1)[2]
    mine = made.secrets[0]
    stolen = replace(mine, received={**(mine.received or {}), 2: theirs})
    with pytest.raises(RoundRefused, match="altered"):
        clients.unmask(made.parameters, 0, made.server.unmasking(), stolen)


def test_wrong_shares_of_a_dropped_key_are_noticed():
    made = Cohort().join().share().send([0, 1, 2, 3, 4])
    answers = {c: made.ask(c) for c in range(5)}
    answers[2][5] = (answers[2][5] + 1) % shares.P
    with pytest.raises(RoundRefused, match="wrong_shares: those of client 5"):
        made.server.open(answers, D)


def test_keys_that_are_no_keys_are_refused():
    made = Cohort().join()
    low = replace(made.server.joined[1], sealing=bytes(32))
    with pytest.raises(RoundRefused, match="public_key"):
        clients.share(made.parameters, 0, {**made.server.joined, 1: low}, made.secrets[0])
    twice = {**made.server.joined, 1: made.server.joined[2]}
    with pytest.raises(RoundRefused, match="public_keys: two of round 1 are the same"):
        clients.share(made.parameters, 0, twice, made.secrets[0])


def test_a_claim_is_limited_to_what_sums_have_room_for():
    made = Cohort(changes={"most": (12, *(1000,) * 9)}).join().share()
    made.updates[0] = replace(made.updates[0], records=10**9)
    assert made.send().open().weight == 12 + sum(range(11, 16))


def test_extras_that_differ_are_refused():
    made = Cohort().join().share()
    made.updates[3] = replace(made.updates[3], extras={})
    with pytest.raises(RoundRefused, match="extras: client 3's"):
        made.send()


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("size", [0, 1, 7, masks.CHUNK // 4, masks.CHUNK // 4 + 1])
def test_a_mask_comes_off_as_it_went_on(dtype: Any, size: int):
    key, vector = own_mask(3), np.arange(size, dtype=dtype)
    masked = vector.copy()
    masks.apply(masked, key, 1)
    # The same stream at once, without chunks.
    whole = np.frombuffer(masks.keystream(key).update(bytes(size * masked.itemsize)), dtype=dtype)
    assert np.array_equal(masked, vector + whole)
    masks.apply(masked, key, -1)
    assert np.array_equal(masked, vector)


def test_the_keystream_is_aes_in_counter_mode():
    """From a counter of zero: the known answer of AES-128 under a key and a block of zeros."""
    assert masks.keystream(bytes(16)).update(bytes(16)).hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"
