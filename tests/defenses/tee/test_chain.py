"""Which chain is found among many certificates, what holds it together, and revocation."""

import random
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from privbench.defenses.tee import certificates, revocation
from privbench.defenses.tee.policy import Policy
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.verify import verify

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
OPEN = Policy(measurements="any", report_data="any", tcb_floor="none")
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
"""Of P-384's group."""


def judge(made: Any, held: list[bytes] | None = None, raw: bytes | None = None, **options: Any) -> Verdict:
    root = certificates.load(made.ark())[0]
    return verify(raw or made.report(), made.chain() if held is None else held, OPEN, AT, root, **options)


def test_a_leaf_that_holds_is_found_beside_others_with_its_key(forge: Callable[..., Any]):
    # A key belongs to a chip and a TCB version; its certificate is issued anew at each request.
    made = forge()
    expired, other_tcb, other_chip = forge(days=-1), forge(tcb=bytes(8)), forge(extensions={"4": bytes(64)})
    for other in (expired, other_tcb, other_chip):
        assert not judge(made, [other.chain()[0], *made.chain()[1:]]).accepted
        assert judge(made, [other.chain()[0], *made.chain()]).accepted
        assert judge(made, [*made.chain(), other.chain()[0]]).accepted


def test_a_forged_issuer_does_not_hide_the_genuine_one(forge: Callable[..., Any]):
    made, forged = forge(), forge(ask_signer="other")
    assert judge(forged).failed == ["chain_signatures"]
    assert judge(made, [*forged.chain(), *made.chain()]).accepted


def test_of_several_chains_that_fail_the_nearest_is_shown(forge: Callable[..., Any]):
    made = forge(days=-1)
    held = [forge(days=-1, extensions={"3.1": None}).chain()[0], *made.chain()]
    assert judge(made, held).failed == ["chain_validity"]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"ask_ca": False}, "not a certificate authority"),
        ({"direct": True}, "issued by the root"),
        ({"ask_name": "ARK-Milan"}, "issued by the root"),
    ],
)
def test_what_may_not_issue_a_leaf_is_refused(forge: Callable[..., Any], made: dict[str, Any], reason: str):
    verdict = judge(forge(**made))
    assert reason in next(c.reason for c in verdict.checks if c.name == "chain_issuers" and c.status == "fail")


def test_a_root_renewed_under_the_same_key_is_the_same_root(forge: Callable[..., Any]):
    made = forge()
    leaf, ask, _ = made.chain()
    assert judge(made, [leaf, ask]).accepted
    renewed = certificates.load(forge(days=5).ark())[0]
    assert verify(made.report(), made.chain(), OPEN, AT, renewed).accepted


def test_both_signatures_of_one_message_hold_and_no_other(forge: Callable[..., Any]):
    made = forge()
    raw = made.report()
    r, s = (int.from_bytes(raw[at : at + 72], "little") for at in (0x2A0, 0x2E8))

    def signed(r: int, s: int) -> Verdict:
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return judge(made, raw=raw[:0x2A0] + signature + raw[0x330:])

    assert signed(r, ORDER - s).accepted
    for other in ((s, r), (ORDER - r, s), (r + ORDER, s), (r, s + ORDER), (0, 0), (r, 0), (ORDER, ORDER)):
        assert "report_signature" in signed(*other).failed


def test_a_list_that_is_partial_clears_nobody(forge: Callable[..., Any]):
    made = forge()
    assert judge(made, crl=made.crl()).accepted
    assert judge(made, crl=made.crl(partial=True)).failed == ["revocation"]


def test_an_intermediate_that_is_revoked_is_refused_on_either_branch(forge: Callable[..., Any]):
    for kind in ("VCEK", "VLEK"):
        made = forge(kind=kind)
        assert judge(made, crl=made.crl(revoked=7)).failed == ["revocation"]
        assert "SEV-" in next(c.reason for c in judge(made, crl=made.crl(revoked=7)).checks if c.name == "revocation")


def test_no_altered_bit_of_a_list_is_accepted(forge: Callable[..., Any]):
    made = forge()
    # One whose last bit is 0: only there could it be called unused.
    crl = next(raw for raw in iter(made.crl, b"") if not raw[-1] & 1)
    rng = random.Random(0)
    # The outer algorithm and the signature's own header, which no signature covers.
    unsigned = range(8 * (len(crl) - 512 - 80), 8 * (len(crl) - 512))
    for bit in [*range(64), *rng.sample(unsigned, 160), *rng.sample(range(len(crl) * 8), 80)]:
        raw = bytearray(crl)
        raw[bit // 8] ^= 1 << bit % 8
        assert judge(made, crl=bytes(raw)).failed == ["revocation"], bit


def test_odd_names_are_no_warning_and_no_error(forge: Callable[..., Any]):
    made = forge()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        long = x509.NameAttribute(NameOID.COUNTRY_NAME, "Atlantis", _validate=False)
    name = x509.Name([long, x509.NameAttribute(NameOID.COMMON_NAME, "ARK-Milan")])
    builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(AT).next_update(AT)
    crl = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()).public_bytes(Encoding.DER)
    # Warnings are errors in these tests.
    assert judge(made, crl=crl).failed == ["revocation"]
    assert revocation.load(crl).issuer == name
