"""The model at a chain's end, compared with one that the auditor has."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privbench.defenses.tee.protocol import downlink
from privbench.defenses.tee.protocol.agreed import Agreed, load
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.receipts import Receipt
from privbench.defenses.tee.report import Malformed
from privbench.defenses.tee.verdict import Verdict
from privbench.defenses.tee.wire import unpack

LARGEST = 1 << 32
"""Bytes of a stored release, which holds a model and the aggregator's state."""


def compare(
    checks: Verdict,
    known: Agreed,
    last: Receipt | None,
    folder: Path,
    model: Path | None,
    recipient: X25519PrivateKey | None,
) -> None:
    """Hold ``final_model``: the file's float32 bytes are those that the last receipt names.

    Under a sealed downlink that name is salted, and the salt comes from the key of the release in ``folder``.

    Args:
        recipient: opens that key.
    """
    if model is None:
        checks.skip("final_model", "no model was given to compare with")
        return
    salt = None
    if known.manifest.recipients:
        if recipient is None:
            checks.skip("final_model", "the downlink is sealed, the digest salted, and no recipient's key was given")
            return
        try:
            salt = _salt(known, last, folder, recipient)
        except (Malformed, Refused) as error:
            checks.hold("final_model", str(error), "")
            return
    found = downlink.digest_of_file(model, salt).hex()
    fault = f"the model given is {found}, the last receipt's {last.model if last else 'none'}"
    checks.hold("final_model", None if last and last.model == found else fault, "the model given is the last receipt's")


def _salt(known: Agreed, last: Receipt | None, folder: Path, recipient: X25519PrivateKey) -> bytes:
    own, recipients = recipient.public_key().public_bytes_raw().hex(), known.manifest.recipients
    if own not in recipients:
        raise Refused("recipient", "the manifest names no such recipient")
    release = unpack(load(folder / "release.bin", LARGEST))
    keys, number = release.get("keys"), release.get("round")
    if not isinstance(keys, list) or len(keys) != len(recipients) or not all(isinstance(k, bytes) for k in keys):
        raise Malformed("release.bin holds no keys for the manifest's recipients")
    if last is None or number != last.round:
        raise Malformed(f"release.bin is of round {number}, the last receipt of {last.round if last else 'none'}")
    return downlink.salt(downlink.open_key(keys[recipients.index(own)], recipient, known.digest, last.round))
