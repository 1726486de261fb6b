"""Before the first round: the manifest of a run, enrolled by an authority and countersigned by every client."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privbench.benchmarks.build import describe
from privbench.defenses.accounting.plan import ClientLevel
from privbench.defenses.channel.channel import Setup
from privbench.defenses.tee.protocol import program, sealing, trainer
from privbench.defenses.tee.protocol.manifest import Manifest, countersigned, new_salt, public, roster_bytes

if TYPE_CHECKING:
    from privbench.defenses.channel.attested import Attested


def enrol(
    channel: "Attested",
    setup: Setup,
    measurement: Callable[[str], bytes],
    keys: Sequence[Ed25519PrivateKey],
    recipients: Sequence[str] = (),
) -> tuple[Manifest, list[bytes]]:
    """The manifest and each client's signature of it, by number; the authority's key is made here and forgotten.

    Args:
        measurement: of a program's launch, on the platform at hand.
        keys: the clients' signing keys.
        recipients: keys that releases are sealed to, as in the manifest.
    """
    salt, authority, privacy = new_salt(), Ed25519PrivateKey.generate(), setup.privacy
    roster = tuple(public(key).hex() for key in keys)
    sampled = setup.facts.sampling == "poisson" and setup.facts.participation < 1
    needed = privacy.bind(setup.facts).needed if isinstance(privacy, ClientLevel) else 0
    manifest = Manifest(
        run=setup.run,
        salt=salt,
        platform=channel.platform,
        measurements=(measurement(program.PROGRAM).hex(),),
        model=sealing.model_digest(setup.model).hex(),
        layout={
            "names": list(setup.layout.names),
            "shapes": [list(s) for s in setup.layout.shapes],
            "parameters": setup.layout.parameters,
        },
        schema=sha256(setup.schema.encode()).hexdigest(),
        aggregation=describe(setup.pipeline.rule),
        release=describe(setup.pipeline.release),
        server=describe(setup.pipeline.optimizer),
        privacy=describe(privacy) if privacy else None,
        facts=asdict(setup.facts),
        weighting=setup.weighting,
        share=setup.share,
        learning_rate=setup.learning_rate,
        seed=setup.seed,
        least_cohort=channel.least(isinstance(privacy, ClientLevel), sampled, needed),
        greatest_age=channel.greatest_age,
        roster=roster,
        authority=public(authority).hex(),
        enrolment=authority.sign(roster_bytes(setup.run, salt, roster, recipients)).hex(),
        recipients=tuple(recipients),
        auditors=channel.auditors,
        **_clients(channel, setup, measurement),
    )
    message = countersigned(manifest.digest)
    return manifest, [key.sign(message) for key in keys]


def _clients(channel: "Attested", setup: Setup, measurement: Callable[[str], bytes]) -> dict[str, Any]:
    """The manifest's fields of attested clients."""
    if not channel.attest_clients:
        return {}
    assert setup.training is not None  # Federation refuses what can't be written down
    return {"client_measurements": (measurement(trainer.PROGRAM).hex(),), "training": setup.training}
