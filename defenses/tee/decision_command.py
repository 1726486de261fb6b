"""``privbench attest decision``: make a receipt of one decision, verify it, replay it. Verifying needs no torch."""

import argparse
import json
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import decision as receipts
from privbench.defenses.tee import policy as policies
from privbench.defenses.tee.decision import METHODS, Decision
from privbench.defenses.tee.platforms.platform import Unavailable
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verdict import Verdict

if TYPE_CHECKING:
    from torch import nn

DONE, REFUSED, BAD_USAGE = 0, 1, 2
RECEIPT, OPENING, KEY = "decision.json", "opening.json", "key.pem"
_LARGEST = 1 << 26
"""Bytes of a receipt, an opening, a key or a certificate."""
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``decision`` to the actions of ``privbench attest``."""
    decision = actions.add_parser("decision", help="a signed receipt of one decision: make, verify, replay")
    steps = decision.add_subparsers(dest="step", required=True, metavar="STEP")
    make = steps.add_parser("make", help="decide and explain, and sign what was decided")
    verify = steps.add_parser("verify", help="verify a receipt's signature and evidence")
    replay = steps.add_parser("replay", help="decide again: bit-exact, or which digest differs")
    verify.add_argument("receipt", type=Path, metavar="FILE", help=f"{RECEIPT}, which is public")
    replay.add_argument("folder", type=Path, metavar="DIR", help=f"holds {RECEIPT} and {OPENING}")
    for one in (make, replay):
        one.add_argument("--model", required=True, metavar="MODULE:FACTORY", help="a function without arguments")
        one.add_argument("--weights", type=Path, metavar="FILE", help=".pt with a state dict, or .npz (default: none)")
    make.add_argument("--input", type=Path, required=True, metavar="FILE", help=".npy, records along the first axis")
    make.add_argument("--key", required=True, metavar="FILE|new", help=f"Ed25519, PEM; new writes {KEY} to --out")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is empty or not there")
    make.add_argument(
        "--explanation", default="integrated_gradients", metavar="NAME", help=f"{', '.join(METHODS)}, none"
    )
    make.add_argument("--target", type=int, metavar="N", help="class to explain (default: the predicted one)")
    make.add_argument("--seed", type=int, default=0, metavar="N")
    make.add_argument("--evidence", choices=("none", "sev-snp"), default="none", help="attest the key (default: none)")
    for one in (verify, replay):
        one.add_argument("--public-key", metavar="HEX", help="the signer that you expect, 32 bytes")
        one.add_argument("--policy", type=Path, metavar="FILE", help="YAML: what is demanded of the evidence")
        one.add_argument("--root", type=Path, metavar="FILE", help="trust this root certificate's key instead of AMD's")
        one.add_argument("--json", action="store_true")


def run(options: argparse.Namespace) -> int:
    """0 when made, verified or bit-exact; 1 when refused, different or without evidence; 2 for bad usage."""
    try:
        return {"make": _make, "verify": _verify, "replay": _replay}[options.step](options)
    except Unavailable as error:
        print(f"privbench attest: no evidence: {error}", file=sys.stderr)
        return REFUSED
    except (ConfigError, OSError) as error:
        print(f"privbench attest: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_USAGE


def _make(options: argparse.Namespace) -> int:
    from privbench.defenses.tee import deciding
    from privbench.defenses.tee.platforms.sev_snp import SEVSNP

    free = not options.out.exists() or (options.out.is_dir() and not any(options.out.iterdir()))
    require(free, "out", str(options.out), "a folder that is empty or not there")
    attested = options.evidence != "none"
    require(options.key == "new" or not attested, "key", options.key, "new: evidence is about a key made in this guest")
    key = Ed25519PrivateKey.generate() if options.key == "new" else _private_key(Path(options.key))
    method = None if options.explanation == "none" else options.explanation
    x, model = _array(options.input), _model(options.model, options.weights, options.seed)
    platform = SEVSNP() if attested else None
    made = deciding.make(model, options.model, x, key, method, options.target, options.seed, platform)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / RECEIPT).write_bytes(made.receipt)
    _private(options.out / OPENING, made.opening)
    if options.key == "new" and not attested:  # an attested key ends with this process
        _private(options.out / KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    print(f"{options.out / RECEIPT}    public")
    print(f"{options.out / OPENING}    private: input, output and explanation, with the salts")
    print(f"signed by {key.public_key().public_bytes_raw().hex()}")
    print("with evidence, not verified" if attested else "assurance none: nothing says where the key is held")
    return DONE


def _verify(options: argparse.Namespace) -> int:
    decision, verdict, refusal = _judged(_read("receipt", options.receipt), options)
    return _say(options, "accepted", decision, verdict, refusal, {})


def _replay(options: argparse.Namespace) -> int:
    receipt, opening = (
        _read(name, options.folder / file) for name, file in (("receipt", RECEIPT), ("opening", OPENING))
    )
    decision, verdict, refusal = _judged(receipt, options)
    if decision is None or refusal is not None:
        return _say(options, "refused", decision, verdict, refusal, {"differences": []})
    from privbench.defenses.tee import deciding

    # The receipt names a factory too. Only the one on the command line is imported: receipts come from strangers.
    model = _model(options.model, options.weights, decision.seed)
    found = [{"name": d.name, "reason": d.reason} for d in deciding.replay(decision, opening, model, options.model)]
    return _say(options, "differs" if found else "bit-exact", decision, verdict, None, {"differences": found})


def _judged(
    receipt: bytes, options: argparse.Namespace
) -> tuple[Decision | None, Verdict | None, dict[str, str] | None]:
    """The decision, its evidence's verdict, and the refusal, if any."""
    fields, root = policies.read(options.policy) if options.policy else None, _root(options.root)
    public_key = None
    if options.public_key is not None:
        public_key = policies.hexadecimal("public_key", options.public_key)
        require(len(public_key) == 32, "public_key", options.public_key, "64 hexadecimal digits")
    try:
        decision = receipts.verify(receipt, public_key)
    except Refused as refusal:
        return None, None, {"name": refusal.name, "reason": refusal.reason}
    if fields is None:
        return decision, None, None
    verdict = receipts.attested(decision, fields, datetime.now(UTC), root)
    if verdict is None:
        return decision, None, {"name": "no_evidence", "reason": "a policy is given, and the receipt has no evidence"}
    faults = "; ".join(f"{c.name}: {c.reason}" for c in verdict.checks if c.status == "fail")
    return decision, verdict, {"name": "evidence", "reason": faults} if faults else None


def _say(
    options: argparse.Namespace,
    outcome: str,
    decision: Decision | None,
    verdict: Verdict | None,
    refusal: dict[str, str] | None,
    more: dict[str, Any],
) -> int:
    outcome = "refused" if refusal else outcome
    status = DONE if outcome in ("accepted", "bit-exact") else REFUSED
    assurance = verdict.assurance if verdict else "none"
    if options.json:
        shown = {"schema": 1, "verdict": outcome, "assurance": assurance, "refusal": refusal, **more}
        print(json.dumps({**shown, "decision": decision.__dict__ if decision else None}, indent=2))
        return status
    if decision is not None:
        known = "as expected" if options.public_key else "the receipt's own word: --public-key says whom you expect"
        unread = "not judged: --policy says what is demanded" if decision.evidence else "none"
        print(f"signed by    {decision.key} ({known})")
        print(f"evidence     {_plain(refusal['reason'] if refusal else 'every check holds') if verdict else unread}")
    for one in more.get("differences", []):
        print(f"differs      {one['name']}: {_plain(one['reason'])}")
    reason = f": {_plain(refusal['name'])}: {_plain(refusal['reason'])}" if refusal else ""
    print(f"{outcome}{reason}; assurance {assurance}")
    return status


def _model(factory: str, weights: Path | None, seed: int) -> "nn.Module":
    """What the user's factory makes, seeded, with the user's weights in it."""
    import importlib

    from torch import nn

    from privbench.defenses.tee import deciding

    require(bool(_FACTORY.fullmatch(factory)), "model", factory, "module:factory, such as mymodels.digits:make")
    require(0 <= seed < receipts.SEEDS, "seed", seed, "0 to 2^53 - 1")
    module, _, name = factory.partition(":")
    with deciding.deterministic(seed):
        try:
            model = getattr(importlib.import_module(module), name)()
        except Exception as error:  # the module is the user's, and can raise anything
            right = "a function to import and call; PYTHONPATH=. finds modules of this folder"
            raise ConfigError("model", factory, f"{right} ({type(error).__name__}: {error})") from None
    require(isinstance(model, nn.Module), "model", factory, f"a torch.nn.Module, not {type(model).__name__}")
    if weights is not None:
        try:
            model.load_state_dict(_weights(weights))
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ConfigError("weights", str(weights), f"the model's own ({error})") from None
    return model


def _weights(path: Path) -> dict[str, Any]:
    """Tensors by name. Nothing in the file is executed."""
    import torch

    require(path.suffix in (".pt", ".pth", ".npz"), "weights", str(path), "a file .pt, .pth or .npz")
    _regular("weights", path)
    try:
        if path.suffix == ".npz":
            # Given a path, NumPy leaves a damaged file open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                found = {name: torch.from_numpy(held[name]) for name in held.files}
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of damaged files raise many kinds
        raise ConfigError("weights", str(path), f"readable weights ({type(error).__name__}: {error})"[:400]) from None
    sound = isinstance(found, dict) and all(isinstance(t, torch.Tensor) for t in found.values())
    require(
        sound, "weights", str(path), "a state dict: tensors by name, as torch.save(model.state_dict(), FILE) writes"
    )
    return dict(found)


def _array(path: Path) -> np.ndarray:
    _regular("input", path)
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except Exception as error:  # as above
        raise ConfigError("input", str(path), f"an array that np.save wrote ({type(error).__name__})") from None
    require(isinstance(found, np.ndarray), "input", str(path), "one array (.npy)")
    return found


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read("key", path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("key", str(path), "an Ed25519 private key, PEM without a password; or new") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("key", str(path), "an Ed25519 private key")
    return key


def _root(path: Path | None) -> certs.Certificate | None:
    if path is None:
        return None
    try:
        found = certs.load(_read("root", path))
    except Malformed as error:
        raise ConfigError("root", str(path), str(error)) from None
    require(len(found) == 1, "root", str(path), f"one root certificate, this has {len(found)}")
    return found[0]


def _read(name: str, path: Path) -> bytes:
    _regular(name, path, _LARGEST)
    return path.read_bytes()


def _regular(name: str, path: Path, most: int | None = None) -> None:
    """Refuse what can't be read to its end: nothing, folders, devices, pipes, and files larger than ``most`` bytes."""
    try:
        fits = path.is_file() and (most is None or path.stat().st_size <= most)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ConfigError(name, str(path), str(error)) from None
    require(fits, name, str(path), "a file" if most is None else f"a file of at most {most} bytes")


def _private(path: Path, content: bytes) -> None:
    """A file for this user alone."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _plain(text: str) -> str:
    """Text of unknown origin, in one line of ASCII."""
    return text.encode("unicode_escape").decode()
