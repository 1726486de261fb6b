"""The key broker: a secret reaches the guest that its policy describes, and everything else is refused by name."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privbench.benchmarks.build import ConfigError
from privbench.defenses.tee import broker as brokers
from privbench.defenses.tee import certificates
from privbench.defenses.tee.broker import Asked, Broker, ask, unseal
from privbench.defenses.tee.platforms import Evidence
from privbench.defenses.tee.platforms.software import Software, authority, code, firmware
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.wire import pack, unpack

CODE = b"m" * 48
KEY = bytes(range(32))
SOFTWARE = frozenset(["software-tee"])
ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)

GUEST = """
from multiprocessing.connection import Listener
from privbench.defenses.tee import broker
from privbench.defenses.tee.protocol.manifest import Refused

def serve(platform, socket):
    with Listener(socket, "AF_UNIX") as listener, listener.accept() as connection:
        name, nonce = connection.recv_bytes().decode(), connection.recv_bytes()
        asked = broker.ask(platform, name, nonce)
        connection.send_bytes(asked.request)
        try:
            secret = broker.unseal(asked, connection.recv_bytes())
            connection.send_bytes(b"a secret of %d bytes, first %d" % (len(secret), secret[1]))
        except Refused as refusal:
            connection.send_bytes(refusal.name.encode())
"""
PROGRAM = "privbench.defenses.tee.tenant:serve"
PATCH = {"defenses/tee/tenant.py": GUEST.encode()}


@dataclass
class InProcess:
    """A platform without processes: reports of a guest with this measurement, by this chip."""

    chip: authority.Chip
    measurement: bytes = CODE
    policy: int = firmware.POLICY
    name: str = field(default="software", init=False)

    def evidence(self, report_data: bytes) -> Evidence:
        return firmware.evidence(self.chip, firmware.Launched(self.measurement), report_data)


@pytest.fixture(scope="module")
def chip() -> authority.Chip:
    return authority.Authority().chip()


def root(chip: authority.Chip) -> certificates.Certificate:
    return certificates.load(chip.certificates[2])[0]


def policy(**more: Any) -> Policy:
    return Policy(**{"measurements": (CODE,), "report_data": "any", "vmpl": 0, "allow": SOFTWARE, **more})


@dataclass
class Clock:
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.time


def broker(chip: authority.Chip, demanded: Policy | None = None, now: Clock | None = None) -> Broker:
    held = {"data": KEY, "model": b"another secret"}
    demanded = demanded or policy()
    return Broker(held, dict.fromkeys(held, demanded), root(chip), now=now or Clock())


def refused(held: Broker, request: bytes) -> str:
    """The refusal's name, which has to stand in the log too, and no secret in its reason."""
    with pytest.raises(Refused) as caught:
        held.release(request)
    assert (held.log[-1].outcome, held.log[-1].reason) == (caught.value.name, caught.value.reason)
    assert held.log[-1].assurance == "none"
    assert KEY.hex() not in caught.value.reason
    return caught.value.name


def altered(asked: Asked, **changes: Any) -> bytes:
    return pack({**unpack(asked.request), **changes})


# To good evidence.


@pytest.fixture(scope="module")
def platform() -> Iterator[Software]:
    with Software() as made:
        yield made


def test_a_launched_guest_gets_the_secret(platform: Software):
    demanded = policy(measurements=(code.measure(code.installed() | PATCH, PROGRAM),))
    held = Broker({"data": KEY}, {"data": demanded}, platform.root)
    guest = platform.launch(PROGRAM, patches=PATCH)
    guest.connection.send_bytes(b"data")
    guest.connection.send_bytes(held.challenge())
    sealed = held.release(guest.connection.recv_bytes())
    assert KEY not in sealed
    guest.connection.send_bytes(sealed)
    assert guest.connection.recv_bytes() == b"a secret of 32 bytes, first 1"
    (entry,) = held.log
    assert (entry.secret, entry.outcome, entry.assurance) == ("data", "released", "software")
    assert entry.measurement == guest.measurement.hex()


def test_a_launched_guest_of_changed_code_does_not(platform: Software):
    demanded = policy(measurements=(code.measure(code.installed() | PATCH, PROGRAM),))
    held = Broker({"data": KEY}, {"data": demanded}, platform.root)
    guest = platform.launch(PROGRAM, patches={"defenses/tee/tenant.py": GUEST.encode() + b"# leaks it\n"})
    guest.connection.send_bytes(b"data")
    guest.connection.send_bytes(held.challenge())
    assert refused(held, guest.connection.recv_bytes()) == "wrong_measurement"
    assert held.log[-1].measurement == guest.measurement.hex()


def test_the_answer_opens_for_this_request_alone(chip: authority.Chip):
    held = broker(chip)
    asked = ask(InProcess(chip), "data", held.challenge())
    sealed = held.release(asked.request)
    assert unseal(asked, sealed) == KEY
    others = [
        replace(asked, private_key=X25519PrivateKey.generate()),
        replace(asked, secret="model"),
        replace(asked, nonce=bytes(32)),
        replace(asked, evidence=bytes(32)),
    ]
    for other in others:
        with pytest.raises(Refused, match="unopenable"):
            unseal(other, sealed)
    for cut in (b"", sealed[:31], sealed[:-1], sealed + b"x", bytes(len(sealed))):
        with pytest.raises(Refused, match="unopenable"):
            unseal(asked, cut)


def test_the_other_signature_of_a_report_is_the_same_evidence(chip: authority.Chip):
    """(r, n - s) holds as well: the secret still goes to the attested key, and opens by the identity of the first."""
    held = broker(chip)
    asked = ask(InProcess(chip), "data", held.challenge())
    report = bytearray(unpack(asked.request)["report"])
    s = int.from_bytes(report[0x2E8:0x330], "little")
    report[0x2E8:0x330] = (ORDER - s).to_bytes(72, "little")
    assert unseal(asked, held.release(altered(asked, report=bytes(report)))) == KEY


# Refused by name.


def test_another_measurement(chip: authority.Chip):
    held = broker(chip)
    assert refused(held, ask(InProcess(chip, b"x" * 48), "data", held.challenge()).request) == "wrong_measurement"


def test_another_root(chip: authority.Chip):
    held = broker(chip)
    other = authority.Authority().chip()
    assert refused(held, ask(InProcess(other), "data", held.challenge()).request) == "evidence"
    assert "root_key" in held.log[-1].reason


def test_no_root_is_trusted_but_the_pinned_ones(chip: authority.Chip):
    held = Broker({"data": KEY}, {"data": policy()})
    assert refused(held, ask(InProcess(chip), "data", held.challenge()).request) == "evidence"
    assert "root_key" in held.log[-1].reason


def test_a_debuggable_guest(chip: authority.Chip, monkeypatch: pytest.MonkeyPatch):
    held = broker(chip)
    monkeypatch.setattr(firmware, "POLICY", firmware.POLICY | 1 << 19)
    assert refused(held, ask(InProcess(chip), "data", held.challenge()).request) == "evidence"
    assert "guest_policy: debug" in held.log[-1].reason
    # Other code that can be debugged, too: both are named, and neither alone is the refusal.
    assert refused(held, ask(InProcess(chip, b"x" * 48), "data", held.challenge()).request) == "evidence"
    assert {"measurement", "guest_policy"} <= {fault.split(":")[0] for fault in held.log[-1].reason.split("; ")}


def test_software_where_the_policy_does_not_allow_it(chip: authority.Chip):
    held = broker(chip, policy(allow=frozenset()))
    assert refused(held, ask(InProcess(chip), "data", held.challenge()).request) == "evidence"
    assert "software_tee" in held.log[-1].reason


def test_expired_certificates(chip: authority.Chip):
    clock = Clock()
    held = broker(chip, now=clock)
    clock.time += authority.LIFETIME * 2
    assert refused(held, ask(InProcess(chip), "data", held.challenge()).request) == "evidence"
    assert "chain_validity" in held.log[-1].reason


def test_each_secret_has_a_policy_of_its_own(chip: authority.Chip):
    demands = {"data": policy(), "model": policy(measurements=(b"x" * 48,))}
    held = Broker({"data": KEY, "model": b"m"}, demands, root(chip))
    assert held.release(ask(InProcess(chip), "data", held.challenge()).request)
    assert refused(held, ask(InProcess(chip), "model", held.challenge()).request) == "wrong_measurement"


def test_a_replayed_request(chip: authority.Chip):
    held = broker(chip)
    asked = ask(InProcess(chip), "data", held.challenge())
    held.release(asked.request)
    assert refused(held, asked.request) == "replayed"


def test_a_nonce_is_spent_by_a_refusal_too(chip: authority.Chip):
    held = broker(chip)
    nonce = held.challenge()
    assert refused(held, ask(InProcess(chip, b"x" * 48), "data", nonce).request) == "wrong_measurement"
    assert refused(held, ask(InProcess(chip), "data", nonce).request) == "replayed"
    nonce = held.challenge()
    assert refused(held, pack({"nonce": nonce})) == "malformed"
    assert refused(held, ask(InProcess(chip), "data", nonce).request) == "replayed"


def test_an_expired_nonce_or_one_of_another_broker(chip: authority.Chip):
    clock = Clock()
    held = broker(chip, now=clock)
    asked = ask(InProcess(chip), "data", held.challenge())
    clock.time += timedelta(seconds=61)
    assert refused(held, asked.request) == "stale_nonce"
    held.challenge()
    assert refused(held, asked.request) == "stale_nonce"
    assert refused(held, ask(InProcess(chip), "data", broker(chip).challenge()).request) == "stale_nonce"
    asked = ask(InProcess(chip), "data", held.challenge())
    clock.time += timedelta(seconds=60)
    assert held.release(asked.request)


def test_forgotten_nonces_are_refused(chip: authority.Chip, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(brokers, "MOST", 3)
    held = broker(chip)
    asked = [ask(InProcess(chip), "data", held.challenge()) for _ in range(4)]
    assert refused(held, asked[0].request) == "stale_nonce"
    assert [unseal(a, held.release(a.request)) for a in asked[1:]] == [KEY] * 3


def test_a_swapped_key_or_name_or_nonce(chip: authority.Chip):
    """A host that carries the request can't turn it into one for its own key, or for another secret."""
    held = broker(chip)
    swaps = {
        "kem_key": X25519PrivateKey.generate().public_key().public_bytes_raw(),
        "secret": "model",
        "nonce": held.challenge(),
    }
    for name, value in swaps.items():
        asked = ask(InProcess(chip), "data", held.challenge())
        assert refused(held, altered(asked, **{name: value})) == "unbound"


def test_an_unknown_secret(chip: authority.Chip):
    held = broker(chip)
    assert refused(held, ask(InProcess(chip), "no\nsuch", held.challenge()).request) == "unknown_secret"
    assert held.log[-1].secret == "no\\nsuch"


@pytest.mark.parametrize("key", [bytes(32), bytes((1,)).ljust(32, b"\0"), b"short", b""])
def test_a_key_that_nothing_can_be_sealed_to(key: bytes, chip: authority.Chip):
    held = broker(chip)
    nonce = held.challenge()
    made = InProcess(chip).evidence(brokers.report_data("data", key, nonce))
    said = {"secret": "data", "report": made.report, "certificates": list(made.certificates)}
    assert refused(held, pack({**said, "kem_key": key, "nonce": nonce})) == "kem_key"


def test_a_report_with_an_altered_byte(chip: authority.Chip):
    held = broker(chip)
    for at in (0x08, 0x30, 0x50, 0x90, 0xC0, 0x180, 0x1A0, 0x2A0, 0x2E8, 0x49F):
        asked = ask(InProcess(chip), "data", held.challenge())
        report = bytearray(unpack(asked.request)["report"])
        report[at] ^= 1
        assert refused(held, altered(asked, report=bytes(report))) in ("evidence", "unbound", "wrong_measurement")


# Malformed requests end in a refusal, and in nothing else.

junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("secret", "report", "certificates", "kem_key", "nonce")


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=2000))
def test_bytes_that_are_no_request(raw: bytes, chip: authority.Chip):
    assert refused(broker(chip), raw) in ("malformed", "stale_nonce")


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from((*FIELDS, "more")), value=junk)
def test_a_field_of_any_value(name: str, value: Any, chip: authority.Chip):
    held = broker(chip)
    asked = ask(InProcess(chip), "data", held.challenge())
    assert refused(held, altered(asked, **{name: value})) != "released"
    assert all(e.reason.isascii() and "\n" not in e.reason for e in held.log)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_request_with_any_bytes_altered_or_cut(data: st.DataObject, chip: authority.Chip):
    held = broker(chip)
    asked = ask(InProcess(chip), "data", held.challenge())
    raw = bytearray(asked.request[: data.draw(st.integers(0, len(asked.request)))])
    for at in data.draw(st.lists(st.integers(0, max(len(raw) - 1, 0)), max_size=4)):
        if raw:
            raw[at] ^= data.draw(st.integers(1, 255))
    try:
        sealed = held.release(bytes(raw))
    except Refused:
        return
    assert unseal(asked, sealed) == KEY  # not touched, or where nothing is bound: it is for the guest's key still


def test_a_huge_request(chip: authority.Chip):
    assert refused(broker(chip), bytes(brokers.LARGEST + 1)) == "malformed"


# A broker that would be open by mistake isn't made.


@pytest.mark.parametrize(
    ("held", "demands", "field"),
    [
        ({"a": KEY}, {}, "policies.a"),
        ({}, {"a": policy()}, "policies.a"),
        ({"a": b""}, {"a": policy()}, "secrets.a"),
        ({"a": KEY}, {"a": policy(measurements="any")}, "policies.a.measurements"),
        ({"a": KEY}, {"a": policy(report_data=bytes(64))}, "policies.a.report_data"),
        ({"a": KEY}, {"a": policy(report_data=None, nonce=bytes(16))}, "policies.a.report_data"),
    ],
)
def test_bad_settings(held: dict[str, bytes], demands: dict[str, Policy], field: str):
    with pytest.raises(ConfigError) as caught:
        Broker(held, demands)
    assert caught.value.field == field


def test_bad_arguments(chip: authority.Chip):
    with pytest.raises(ConfigError, match="lifetime"):
        Broker({"a": KEY}, {"a": policy()}, lifetime=0)
    with pytest.raises(ConfigError, match="nonce"):
        ask(InProcess(chip), "data", b"short")


def test_nothing_shows_the_secret(chip: authority.Chip):
    held = broker(chip)
    asked = ask(InProcess(chip), "data", held.challenge())
    held.release(asked.request)
    shown = f"{held!r} {held.log!r} {asked!r}"
    assert repr(KEY)[2:-1] not in shown
    assert "X25519PrivateKey" not in shown
