"""``privbench attest gpu`` and ``attest bind``: a GPU's attestation token, and its bond with the guest's report."""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privbench.benchmarks.conform import ConfigError, require
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import composite, gpu, jws
from privbench.defenses.tee import policy as policies
from privbench.defenses.tee.policy import ANY, Policy
from privbench.defenses.tee.report import SIZE, Malformed
from privbench.defenses.tee.verdict import Check

ACCEPTED, REFUSED = 0, 1

Actions = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add(actions: Actions) -> None:
    """Add ``gpu`` and ``bind`` to the actions of ``privbench attest``."""
    check = actions.add_parser("gpu", help="verify a GPU attestation token (EAT) by its issuer's key set")
    check.add_argument(
        "token", type=Path, metavar="TOKEN", help="the attestation service's answer, or one compact token"
    )
    nonce = check.add_mutually_exclusive_group(required=True)
    nonce.add_argument("--nonce", metavar="HEX", help=f"the {gpu.NONCE} bytes that you gave to the GPU")
    nonce.add_argument("--any-nonce", action="store_true", help="gives up freshness")
    _demands(check)
    bind = actions.add_parser("bind", help="CPU and GPU evidence as one: nonce, report data, manifest, verification")
    steps = bind.add_subparsers(dest="step", required=True, metavar="STEP")
    first = steps.add_parser("nonce", help="the GPU's nonce for a challenge")
    second = steps.add_parser("report-data", help="REPORT_DATA for the guest's report, once the token is there")
    make = steps.add_parser("make", help="write both pieces of evidence to one manifest")
    verify = steps.add_parser("verify", help="verify a manifest: the report, the token and their bond")
    for one in (first, second, verify):
        one.add_argument(
            "--challenge", required=True, metavar="HEX", help=f"{composite.CHALLENGE} bytes of the verifier's"
        )
    for one in (second, make):
        one.add_argument("--token", type=Path, required=True, metavar="FILE", help="the attestation service's answer")
    make.add_argument("--report", type=Path, required=True, metavar="FILE", help="the report's 1184 bytes")
    make.add_argument("--certs", type=Path, nargs="+", action="extend", required=True, metavar="FILE")
    make.add_argument("--out", type=Path, required=True, metavar="FILE", help="the manifest, JSON")
    verify.add_argument("manifest", type=Path, metavar="MANIFEST")
    verify.add_argument("--policy", type=Path, metavar="FILE", help="YAML: what is demanded of the report")
    verify.add_argument("--measurement", nargs="+", action="extend", metavar="HEX", help="trusted launch digests")
    verify.add_argument("--root", type=Path, metavar="FILE", help="trust this root certificate's key instead of AMD's")
    verify.add_argument("--crl", type=Path, metavar="FILE", help="certificate revocation list")
    _demands(verify)


def _demands(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", type=Path, required=True, metavar="JWKS", help="the issuer's key set, as you got it")
    parser.add_argument("--issuer", default=gpu.ISSUER, metavar="X", help=f"default: {gpu.ISSUER}")
    parser.add_argument("--audience", metavar="X", help="whom the token is for (default: nobody in particular)")
    parser.add_argument("--gpus", type=int, metavar="N", help="how many there have to be (default: one or more)")
    parser.add_argument(
        "--model", nargs="+", action="extend", default=[], metavar="X", help="beginnings of hwmodel: GH100"
    )
    parser.add_argument("--claim", nargs="+", action="extend", default=[], metavar="NAME=JSON", help="also of each GPU")
    parser.add_argument("--at", metavar="RFC3339", help="the time of verification (default: now)")
    parser.add_argument("--json", action="store_true")


def run_gpu(options: argparse.Namespace) -> int:
    """0 for an accepted token, 1 for a refused one."""
    nonce = ANY if options.any_nonce else _bytes("nonce", options.nonce)
    policy, keys, at = _token_policy(options, nonce), _keys(options.keys), _time(options.at)
    verdict = gpu.verify(_read("token", options.token, jws.LARGEST), keys, policy, at)
    if options.json:
        print(json.dumps({**verdict.as_dict(), "at": at.isoformat()}, indent=2))
    else:
        _print(verdict.checks)
        print(f"{'accepted' if verdict.accepted else 'refused'}: by the key set that you brought")
    return ACCEPTED if verdict.accepted else REFUSED


def run_bind(options: argparse.Namespace) -> int:
    """0 when printed, made or accepted; 1 when refused."""
    return {"nonce": _nonce, "report-data": _report_data, "make": _make, "verify": _verify}[options.step](options)


def _nonce(options: argparse.Namespace) -> int:
    print(composite.gpu_nonce(_bytes("challenge", options.challenge)).hex())
    return ACCEPTED


def _report_data(options: argparse.Namespace) -> int:
    print(_over(_bytes("challenge", options.challenge), options.token).hex())
    return ACCEPTED


def _over(challenge: bytes, path: Path) -> bytes:
    try:
        return composite.report_data(challenge, _read("token", path, jws.LARGEST))
    except Malformed as error:
        raise ConfigError("token", str(path), str(error)) from None


def _make(options: argparse.Namespace) -> int:
    report = _read("report", options.report, SIZE)
    require(len(report) == SIZE, "report", str(options.report), f"{SIZE} bytes")
    material = [_read("certs", path, certs.LARGEST) for path in options.certs]
    token = _read("token", options.token, jws.LARGEST)
    try:
        gpu.unbundle(token)
    except Malformed as error:
        raise ConfigError("token", str(options.token), str(error)) from None
    options.out.write_text(composite.Manifest(report, material, token).as_json())
    print(options.out)
    return ACCEPTED


def _verify(options: argparse.Namespace) -> int:
    fields: dict[str, Any] = policies.read(options.policy) if options.policy else {}
    fields.pop("nonce", None)
    if options.measurement:
        fields["measurements"] = tuple(policies.hexadecimal("measurement", one) for one in options.measurement)
    policy = Policy(**{**fields, "report_data": ANY})
    challenge, at = _bytes("challenge", options.challenge), _time(options.at)
    verdict = composite.verify(
        composite.read(_read("manifest", options.manifest, composite.LARGEST)),
        challenge,
        policy,
        _token_policy(options, ANY),
        _keys(options.keys),
        at,
        _root(options.root),
        _read("crl", options.crl, certs.LARGEST) if options.crl else None,
    )
    if options.json:
        print(json.dumps({**verdict.as_dict(), "at": at.isoformat()}, indent=2))
    else:
        _print([verdict.bond])
        _print(verdict.cpu.checks)
        _print(verdict.gpu.checks)
        print(f"{'accepted' if verdict.accepted else 'refused'}: assurance {verdict.as_dict()['assurance']}")
    return ACCEPTED if verdict.accepted else REFUSED


def _token_policy(options: argparse.Namespace, nonce: bytes | str) -> gpu.TokenPolicy:
    claims: dict[str, Any] = {}
    for text in options.claim:
        name, separator, value = text.partition("=")
        require(bool(name and separator), "claim", text, "NAME=JSON, such as secboot=true")
        try:
            claims[name] = json.loads(value)
        except ValueError:
            raise ConfigError("claim", text, 'NAME=JSON, such as hwmodel="GH100"') from None
    return gpu.TokenPolicy(nonce, options.issuer, options.audience, options.gpus, tuple(options.model), claims)


def _keys(path: Path) -> jws.Keys:
    try:
        return jws.key_set(_read("keys", path, jws.LARGEST))
    except Malformed as error:
        raise ConfigError("keys", str(path), str(error)) from None


def _root(path: Path | None) -> certs.Certificate | None:
    if path is None:
        return None
    try:
        found = certs.load(_read("root", path, certs.LARGEST))
    except Malformed as error:
        raise ConfigError("root", str(path), str(error)) from None
    require(len(found) == 1, "root", str(path), f"one root certificate, this has {len(found)}")
    return found[0]


def _bytes(name: str, text: str) -> bytes:
    raw = policies.hexadecimal(name, text)
    require(len(raw) == 32, name, text, "32 bytes, 64 hexadecimal digits")
    return raw


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ConfigError("at", text, "a time such as 2026-01-31T12:00:00Z")
    return found.astimezone(UTC)


def _read(name: str, path: Path, most: int) -> bytes:
    """At most one byte more than ``most``, so that what is too long is seen to be."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(name, str(path), getattr(error, "strerror", None) or str(error)) from None


def _print(checks: Sequence[Check]) -> None:
    for check in checks:
        # Names and reasons quote what others wrote: no line breaks or escape codes of theirs get out.
        name, reason = (text.encode("unicode_escape").decode() for text in (check.name, check.reason))
        print(f"{check.status:<15} {name:<28} {reason}")
