"""GPU attestation tokens, signed here by keys of the tests' own: what is taken, and what is refused by name."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privbench.benchmarks.build import ConfigError
from privbench.defenses.tee import composite, gpu, jws
from privbench.defenses.tee.command import attest
from privbench.defenses.tee.policy import ANY, Policy
from privbench.defenses.tee.report import Malformed

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
NONCE = bytes(range(32))
KEY, OTHER = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def jwk(key: ec.EllipticCurvePrivateKey, kid: str = "one", **changes: Any) -> dict[str, Any]:
    point = key.public_key().public_numbers()
    x, y = (encode(n.to_bytes(48, "big")) for n in (point.x, point.y))
    return {"kty": "EC", "crv": "P-384", "kid": kid, "x": x, "y": y, "use": "sig", "alg": "ES384", **changes}


KEYS = jws.key_set(json.dumps({"keys": [jwk(KEY)]}).encode())


def sign(signed: str, key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def compact(claims: bytes) -> bytes:
    """A token without a signature."""
    return f"{encode(b'{}')}.{encode(claims)}.".encode()


def token(claims: dict[str, Any], key: ec.EllipticCurvePrivateKey = KEY, **header: Any) -> str:
    head = {k: v for k, v in {"alg": "ES384", "kid": "one", "typ": "JWT", **header}.items() if v is not None}
    signed = ".".join(encode(json.dumps(part).encode()) for part in (head, claims))
    return f"{signed}.{encode(sign(signed, key))}"


def base(nonce: bytes = NONCE) -> dict[str, Any]:
    now = int(AT.timestamp())
    return {"iss": gpu.ISSUER, "iat": now - 10, "nbf": now - 10, "exp": now + 3600, "eat_nonce": nonce.hex()}


def device(number: int = 0, nonce: bytes = NONCE, **changes: Any) -> dict[str, Any]:
    claims = {
        **base(nonce),
        **dict.fromkeys(gpu.TRUE_CLAIMS, True),
        "measres": "success",
        "dbgstat": "disabled",
        "hwmodel": "GH100 A01 GSP BROM",
        "ueid": f"47817738271{number}",
        "oemid": "5703",
        "x-nvidia-gpu-driver-version": "570.133.20",
        "x-nvidia-gpu-vbios-version": "96.00.9F.00.01",
    }
    return {k: v for k, v in {**claims, **changes}.items() if v is not MISSING}


MISSING: Any = object()


def bundle(
    *tokens: str, overall: dict[str, Any] | None = None, key: ec.EllipticCurvePrivateKey = KEY, nonce: bytes = NONCE
) -> bytes:
    gpus = {f"GPU-{n}": one for n, one in enumerate(tokens)}
    submods = {n: ["DIGEST", ["SHA-256", hashlib.sha256(t.encode()).hexdigest()]] for n, t in gpus.items()}
    claims = {**base(nonce), "x-nvidia-overall-att-result": True, "x-nvidia-ver": "3.0", "submods": submods}
    claims = {k: v for k, v in {**claims, **(overall or {})}.items() if v is not MISSING}
    return json.dumps([["JWT", token(claims, key)], gpus]).encode()


def failed(raw: bytes, keys: jws.Keys = KEYS, at: datetime = AT, **policy: Any) -> list[str]:
    verdict = gpu.verify(raw, keys, gpu.TokenPolicy(**{"nonce": NONCE, **policy}), at)
    assert verdict.accepted == (not verdict.failed)
    return verdict.failed


def test_a_bundle_of_two_gpus_is_accepted():
    raw = bundle(token(device(0)), token(device(1)))
    verdict = gpu.verify(raw, KEYS, gpu.TokenPolicy(NONCE, gpus=2, models=("GH100",)), AT)
    assert verdict.accepted, verdict.failed
    assert verdict.gpus["GPU-1"]["ueid"] == "478177382711"
    assert verdict.as_dict()["verdict"] == "accepted"


def test_one_token_alone_is_accepted_and_older_digest_names_are_known():
    assert failed(token(device()).encode()) == []
    one = token(device())
    submods = {"GPU-0": ["DIGEST", ["SHA256", hashlib.sha256(one.encode()).hexdigest()]]}
    assert failed(bundle(one, overall={"submods": submods})) == []


def test_another_library_reads_the_same_signature():
    """The key set's coordinates are the key's: its PEM verifies what the set verifies."""
    held = KEYS["one"].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert held == KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("name", ["none", "None", "NONE"])
def test_alg_none_is_refused_by_name(name):
    head, claims, _ = token(device(), alg=name).split(".")
    for signature in ("", encode(sign(f"{head}.{claims}"))):
        verdict = gpu.verify(f"{head}.{claims}.{signature}".encode(), KEYS, gpu.TokenPolicy(NONCE), AT)
        assert "GPU-0.algorithm" in verdict.failed
        reason = next(c.reason for c in verdict.checks if c.name == "GPU-0.algorithm")
        assert reason.startswith("alg none: signed by nobody")


def test_a_mac_keyed_by_the_public_key_is_refused():
    """The classic confusion: the verifier's public key as a secret."""
    for secret in (
        KEYS["one"].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        KEYS["one"].public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
    ):
        signed = ".".join(encode(json.dumps(p).encode()) for p in ({"alg": "HS384", "kid": "one"}, device()))
        mac = hmac.new(secret, signed.encode(), hashlib.sha384).digest()
        assert {"GPU-0.algorithm", "GPU-0.signature"} <= set(failed(f"{signed}.{encode(mac)}".encode()))


@pytest.mark.parametrize("alg", ["ES256", "RS384", "PS384", "ES384 ", "es384", "", 384, None])
def test_no_other_algorithm_is_taken(alg):
    assert failed(token(device(), alg=alg).encode()) == ["GPU-0.algorithm"]


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "crit", "b64"])
def test_keys_and_rules_in_the_header_are_not_followed(name):
    value = jwk(OTHER) if name == "jwk" else ["exp"]
    assert "GPU-0.algorithm" in failed(token(device(), OTHER, **{name: value}).encode())
    assert failed(token(device(), KEY, **{name: value}).encode()) == ["GPU-0.algorithm"]


def test_a_key_has_to_be_named_and_in_the_set():
    assert failed(token(device(), OTHER).encode()) == ["GPU-0.signature"]
    assert failed(token(device(), kid="two").encode()) == ["GPU-0.signature"]
    assert failed(token(device(), kid=None).encode()) == ["GPU-0.signature"]
    both = jws.key_set(json.dumps({"keys": [jwk(OTHER, "two"), jwk(KEY)]}).encode())
    assert failed(token(device(), kid="two").encode(), both) == ["GPU-0.signature"]
    assert failed(token(device(), OTHER, kid="two").encode(), both) == []


def test_what_is_signed_cannot_be_altered():
    head, claims, signature = token(device()).split(".")
    altered = encode(json.dumps(device(hwmodel="GB200")).encode())
    assert failed(f"{head}.{altered}.{signature}".encode()) == ["GPU-0.signature"]
    raw = base64.urlsafe_b64decode(signature)
    for wrong in (raw[:-1], raw + b"\0", bytes(96), raw[48:] + raw[:48]):
        assert failed(f"{head}.{claims}.{encode(wrong)}".encode()) == ["GPU-0.signature"]
    der = KEY.sign(f"{head}.{claims}".encode(), ec.ECDSA(hashes.SHA384()))
    assert failed(f"{head}.{claims}.{encode(der)}".encode()) == ["GPU-0.signature"]


@pytest.mark.parametrize(
    "claim", [*gpu.TRUE_CLAIMS, "measres", "dbgstat", "hwmodel", "eat_nonce", "iss", "exp", "iat", "ueid"]
)
def test_missing_claims_are_refused_by_name(claim):
    verdict = gpu.verify(token(device(**{claim: MISSING})).encode(), KEYS, gpu.TokenPolicy(NONCE), AT)
    (name,) = verdict.failed
    reason = next(c.reason for c in verdict.checks if c.name == name)
    assert claim in reason or claim in name


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("secboot", False),
        ("secboot", "true"),
        ("secboot", 1),
        ("secboot", None),
        ("measres", "fail"),
        ("measres", True),
        ("measres", "missing"),
        ("dbgstat", "enabled"),
        ("dbgstat", ["disabled"]),
        ("x-nvidia-gpu-attestation-report-nonce-match", False),
        ("hwmodel", None),
        ("hwmodel", 7),
        ("iss", "https://nras.attestation.nvidia.com.evil.example"),
        ("iss", f"{gpu.ISSUER}/"),
        ("eat_nonce", bytes(32).hex()),
        ("eat_nonce", NONCE.hex()[:-2]),
        ("eat_nonce", [NONCE.hex()]),
        ("exp", int(AT.timestamp())),
        ("exp", 1000 * int(AT.timestamp())),
        ("exp", float("1e300")),
        ("exp", 10**400),
        ("exp", True),
        ("exp", str(int(AT.timestamp()) + 9)),
        ("iat", int(AT.timestamp()) + 61),
        ("nbf", int(AT.timestamp()) + 61),
        ("aud", "somebody"),
    ],
)
def test_wrong_claims_are_refused(claim, value):
    assert len(failed(token(device(**{claim: value})).encode())) == 1
    if claim in base() or claim == "aud":
        assert len(failed(bundle(token(device()), overall={claim: value}))) == 1


@pytest.mark.parametrize("stated", gpu.DEBUG_OFF)
def test_every_way_of_no_debugging_is_taken(stated):
    assert failed(token(device(dbgstat=stated)).encode()) == []


def test_the_nonce_is_compared_as_bytes_or_waived_in_so_many_words():
    assert failed(token(device(eat_nonce=NONCE.hex().upper())).encode()) == []
    assert failed(token(device(eat_nonce="00")).encode(), nonce=ANY) == []
    assert failed(token(device(eat_nonce=MISSING)).encode(), nonce=ANY) == ["GPU-0.nonce"]


def test_the_audience_is_exact():
    mine = token(device(aud=["me", "you"])).encode()
    assert failed(mine, audience="me") == []
    assert failed(mine, audience="he") == ["GPU-0.audience"]
    assert failed(mine) == ["GPU-0.audience"]
    assert failed(token(device()).encode(), audience="me") == ["GPU-0.audience"]


def test_demands_of_ones_own():
    raw = bundle(token(device(0)), token(device(1)))
    assert failed(raw, gpus=1) == ["gpus.count"]
    assert failed(raw, models=("GB200",)) == ["GPU-0.model", "GPU-1.model"]
    assert failed(raw, claims={"oemid": "5703"}) == []
    assert failed(raw, claims={"oemid": 5703}) == ["GPU-0.oemid", "GPU-1.oemid"]
    assert failed(raw, claims={"x-nvidia-more": True}) == ["GPU-0.x-nvidia-more", "GPU-1.x-nvidia-more"]


def test_the_overall_token_holds_each_gpus_digest():
    first, second = token(device(0)), token(device(1))
    kind, gpus = json.loads(bundle(first, second))
    swapped = json.dumps([kind, {**gpus, "GPU-1": token(device(2))}]).encode()
    assert failed(swapped) == ["overall.submods"]
    assert failed(json.dumps([kind, {"GPU-0": first}]).encode()) == ["overall.submods"]
    assert failed(json.dumps([kind, {**gpus, "GPU-2": token(device(2))}]).encode()) == ["overall.submods"]
    assert failed(bundle(first, overall={"submods": MISSING})) == ["overall.submods"]
    assert failed(bundle(first, first)) == ["gpus.distinct"]


def test_an_overall_no_refuses_whatever_gpus_say():
    for value in (False, "true", 1, None, MISSING):
        assert failed(bundle(token(device()), overall={"x-nvidia-overall-att-result": value})) == ["overall.result"]
    assert failed(bundle(token(device()), key=OTHER)) == ["overall.signature"]
    assert failed(bundle(token(device(), OTHER))) == ["GPU-0.signature"]


def test_an_overall_token_alone_says_nothing_of_a_gpu():
    overall = json.loads(bundle(token(device())))[0][1]
    assert "GPU-0.measurement" in failed(overall.encode())


HALF = b'[["JWT", "e30.e30."], {"\\ud800": "e30.e30."}]'
"""A GPU whose name is half a surrogate pair: JSON, and no Unicode."""


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"a.b",
        b"a.b.c.d",
        b"[]",
        b"[[]]",
        b'[["JWT", "a.b.c"], {}]',
        b'[["JWT", 1], {"GPU-0": "a"}]',
        b'[["JWS", "a.b.c"], {"GPU-0": "a.b.c"}]',
        b'[["JWT", "a.b.c"], {"GPU-0": "a.b.c"}] x',
        b"[" * 100000,
        b"\xff\xfe.a.b",
        "…".encode(),
        b"x" * (jws.LARGEST + 1),
        f"{encode(b'[]')}.{encode(b'{}')}.".encode(),
        compact(b'{"a":1,"a":2}'),
        compact(b'{"a":NaN}'),
        compact(b'{"hwmodel":"\\ud800"}'),
        HALF,
        f"{encode(b'{}')}=.{encode(b'{}')}.".encode(),
        f"{encode(b'{}')[:-1]}h.{encode(b'{}')}.".encode(),
    ],
)
def test_malformed_tokens_are_refused_and_never_raise(raw):
    assert failed(raw) == ["token_format"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_no_altered_byte_is_accepted(place, value):
    raw = bytearray(GOOD)
    place %= len(raw)
    if raw[place] == value:
        return
    raw[place] = value
    verdict = gpu.verify(bytes(raw), KEYS, gpu.TokenPolicy(NONCE), AT)
    assert not verdict.accepted


GOOD = token(device()).encode()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[]", "isn't a JSON object"),
        ("{}", "a list of keys"),
        ('{"keys": []}', "no P-384 key"),
        (json.dumps({"keys": [jwk(KEY, crv="P-256")]}), "no P-384 key"),
        (json.dumps({"keys": [jwk(KEY, use="enc")]}), "no P-384 key"),
        (json.dumps({"keys": [jwk(KEY, alg="HS384")]}), "no P-384 key"),
        (json.dumps({"keys": [{"kty": "oct", "kid": "one", "k": "AA"}]}), "no P-384 key"),
        (json.dumps({"keys": [jwk(KEY), jwk(OTHER)]}), "two keys with the kid 'one'"),
        (json.dumps({"keys": [jwk(KEY, kid="")]}), "without a kid"),
        (json.dumps({"keys": [jwk(KEY, x=encode(bytes(48)))]}), "isn't a point"),
        (json.dumps({"keys": [jwk(KEY, y=encode(bytes(47)))]}), "y of the key"),
    ],
)
def test_key_sets_that_are_none_are_named(given, said):
    with pytest.raises(Malformed, match=said):
        jws.key_set(given.encode())


def test_bad_policies_name_the_field():
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"nonce": b"short"}, "nonce="),
        ({"nonce": "none"}, "nonce=none"),
        ({"nonce": ANY, "issuer": ""}, "issuer="),
        ({"nonce": ANY, "gpus": 0}, "gpus=0"),
    ]
    for fields, said in wrong:
        with pytest.raises(ConfigError, match=said):
            gpu.TokenPolicy(**fields)
    with pytest.raises(ValueError, match="offset"):
        gpu.verify(GOOD, KEYS, gpu.TokenPolicy(NONCE), datetime(2026, 1, 1))


CHALLENGE = bytes(reversed(range(32)))


@pytest.fixture
def bound(forge: Callable[..., Any]) -> Callable[..., composite.Manifest]:
    """Evidence of a forged guest and of a GPU, bound to a challenge."""

    def make(challenge: bytes = CHALLENGE, number: int = 0) -> composite.Manifest:
        nonce = composite.gpu_nonce(challenge)
        raw = bundle(token(device(number, nonce)), nonce=nonce)
        made = forge(fields={0x50: composite.report_data(challenge, raw)})
        return composite.Manifest(made.report(), made.chain(), raw)

    return make


def appraise(manifest: composite.Manifest, forge: Callable[..., Any], challenge: bytes = CHALLENGE, **changes: Any):
    from privbench.defenses.tee import certificates as certs

    policy = Policy(measurements=ANY, report_data=ANY, tcb_floor="none", **changes)
    (root,) = certs.load(forge().ark())
    return composite.verify(manifest, challenge, policy, gpu.TokenPolicy(ANY), KEYS, AT, root)


def test_both_pieces_of_evidence_hold_together(bound, forge):
    verdict = appraise(bound(), forge)
    assert verdict.accepted, verdict.as_dict()
    assert verdict.as_dict()["assurance"] == "custom"
    again = composite.read(bound().as_json().encode())
    assert appraise(again, forge).accepted


def test_another_gpus_token_is_refused_by_name(bound, forge):
    mine, other = bound(), bound(number=1)
    verdict = appraise(composite.Manifest(mine.report, mine.certificates, other.token), forge)
    assert not verdict.accepted
    assert verdict.gpu.accepted
    assert verdict.bond.reason == "the report commits to another GPU token, or to another challenge"
    assert verdict.cpu.failed == ["report_data"]


def test_another_guests_report_is_refused_by_name(bound, forge):
    mine, other = bound(), bound(number=1)
    verdict = appraise(composite.Manifest(other.report, other.certificates, mine.token), forge)
    assert verdict.bond.status == "fail"
    assert not verdict.accepted


def test_evidence_for_another_challenge_is_refused(bound, forge):
    verdict = appraise(bound(), forge, bytes(32))
    assert verdict.bond.status == "fail"
    assert "GPU-0.nonce" in verdict.gpu.failed
    assert verdict.cpu.failed == ["report_data"]


def test_a_second_signature_of_the_same_token_is_the_same_token(bound, forge):
    """(r, n - s) verifies as well as (r, s): the bond is over what is signed."""
    mine = bound()
    (kind, overall), gpus = json.loads(mine.token)
    head, claims, signature = overall.split(".")
    raw = base64.urlsafe_b64decode(signature)
    other = raw[:48] + (ORDER - int.from_bytes(raw[48:], "big")).to_bytes(48, "big")
    token = json.dumps([[kind, f"{head}.{claims}.{encode(other)}"], gpus]).encode()
    assert token != mine.token
    assert appraise(composite.Manifest(mine.report, mine.certificates, token), forge).accepted


def test_a_nonce_of_the_policys_own_has_no_say(bound, forge):
    assert appraise(bound(), forge, vmpl=0).accepted
    assert not appraise(bound(), forge, vmpl=1).accepted


@pytest.mark.parametrize("part", ["report", "token"])
def test_malformed_parts_are_refused(part, bound, forge):
    mine = bound()
    held = {"report": mine.report, "token": mine.token, part: b"x"}
    verdict = appraise(composite.Manifest(held["report"], mine.certificates, held["token"]), forge)
    assert not verdict.accepted
    assert "can't be read" in verdict.bond.reason


def test_a_bond_with_a_name_that_is_no_text_is_refused(bound, forge, desk, capsys):
    mine = bound()
    verdict = appraise(composite.Manifest(mine.report, mine.certificates, HALF), forge)
    assert "can't be read" in verdict.bond.reason
    (desk / "half").write_bytes(HALF)
    assert attest(["bind", "report-data", "--challenge", CHALLENGE.hex(), "--token", str(desk / "half")]) == 2
    assert "the bundle isn't JSON" in capsys.readouterr().err


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"schema": "privbench composite evidence 1"}', b"[" * 100000])
def test_what_is_no_manifest_is_named(raw):
    with pytest.raises(ConfigError, match="not composite evidence"):
        composite.read(raw)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    now = datetime.now(UTC)
    times = {"iat": int(now.timestamp()) - 5, "nbf": MISSING, "exp": int((now + timedelta(hours=1)).timestamp())}
    (tmp_path / "token").write_text(token(device(**times)))
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [jwk(KEY)]}))
    return tmp_path


def test_the_command_prints_each_check_and_ends_with_the_verdict(desk, capsys):
    given = ["gpu", str(desk / "token"), "--keys", str(desk / "keys.json")]
    assert attest([*given, "--nonce", NONCE.hex()]) == 0
    out = capsys.readouterr().out
    assert "pass            GPU-0.secboot" in out
    assert "accepted: by the key set that you brought" in out
    assert attest([*given, "--nonce", bytes(32).hex(), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "refused"
    assert [c["name"] for c in found["checks"] if c["status"] == "fail"] == ["GPU-0.nonce"]
    assert attest([*given, "--any-nonce", "--model", "GH100", "--claim", 'oemid="5703"', "--gpus", "1"]) == 0
    assert attest([*given, "--any-nonce", "--at", "2020-01-01T00:00:00Z"]) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--nonce", "00"], "nonce=00"),
        (["--nonce", "zz"], "nonce=zz"),
        (["--any-nonce", "--claim", "a=b"], "claim=a=b"),
        (["--any-nonce", "--claim", "a"], "claim=a"),
        (["--any-nonce", "--at", "now"], "at=now"),
        (["--any-nonce", "--keys", "nowhere"], "keys=nowhere"),
        (["--any-nonce", "--gpus", "0"], "gpus=0"),
    ],
)
def test_bad_usage_is_named(more, said, desk, capsys):
    assert attest(["gpu", str(desk / "token"), "--keys", str(desk / "keys.json"), *more]) == 2
    assert said in capsys.readouterr().err


def test_names_of_others_bring_no_line_breaks_to_the_terminal(desk, capsys):
    one = token(device(hwmodel="a\n\x1b[2Jaccepted"))
    (desk / "token").write_bytes(json.dumps([["JWT", one], {"GPU\n0": one}]).encode())
    assert attest(["gpu", str(desk / "token"), "--keys", str(desk / "keys.json"), "--any-nonce"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert not any(line.startswith("0.") for line in out.splitlines())


def test_binding_from_the_command_line(desk, forge, capsys):
    """What a guest does: nonce, token, report data, report, manifest; and what its verifier does with it."""
    challenge = ["--challenge", CHALLENGE.hex()]
    assert attest(["bind", "nonce", *challenge]) == 0
    nonce = bytes.fromhex(capsys.readouterr().out.strip())
    raw = bundle(token(device(nonce=nonce)), nonce=nonce)
    (desk / "bundle.json").write_bytes(raw)
    assert attest(["bind", "report-data", *challenge, "--token", str(desk / "bundle.json")]) == 0
    data = bytes.fromhex(capsys.readouterr().out.strip())
    made = forge(fields={0x50: data})
    (desk / "report.bin").write_bytes(made.report())
    for n, der in enumerate(made.chain()):
        (desk / f"{n}.der").write_bytes(der)
    (desk / "root.der").write_bytes(made.ark())
    parts = ["--report", str(desk / "report.bin"), "--certs", *(str(desk / f"{n}.der") for n in range(3))]
    out = str(desk / "manifest.json")
    assert attest(["bind", "make", "--token", str(desk / "bundle.json"), *parts, "--out", out]) == 0
    (desk / "policy.yaml").write_text("measurements: any\nreport_data: any\ntcb_floor: none\n")
    given = ["bind", "verify", out, "--keys", str(desk / "keys.json"), "--policy", str(desk / "policy.yaml")]
    given += ["--root", str(desk / "root.der"), "--at", AT.isoformat()]
    capsys.readouterr()
    status = attest([*given, *challenge, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (status, found["bond"]["status"]) == (0, "pass"), found
    assert attest([*given, "--challenge", bytes(32).hex()]) == 1
    assert "fail            bond" in capsys.readouterr().out
