"""Whether what attacks a run can attack it: its victims, its rounds, and what its federation lets adversaries do."""

from typing import TYPE_CHECKING, Any

from privbench.attacks.leakage.active import Targeted
from privbench.attacks.leakage.attack import AttackFailed
from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.federation.federation import Federation, number_of_clients
from privbench.benchmarks.federation.server import ServerSGD
from privbench.benchmarks.federation.settings import FederationSettings
from privbench.benchmarks.measures.leakage import Leakage

if TYPE_CHECKING:
    from privbench.benchmarks.experiment import Experiment


def victims(experiment: "Experiment") -> frozenset[int]:
    """The clients whose updates are attacked.

    Raises:
        ConfigError: some of them aren't clients of this federation.
    """
    assert experiment.leakage is not None
    try:
        return frozenset(experiment.leakage.clients(number_of_clients(experiment.federation, experiment.task)))
    except ConfigError as error:
        raise error.under("leakage") from None


def kept_rounds(leakage: Leakage, settings: FederationSettings) -> frozenset[int]:
    """Rounds whose views the attacks look at, and the one before each where the server's momentum has to be undone."""
    looked_at = {r for attacked in leakage.rounds for r in leakage.window(attacked)}
    momentum = isinstance(settings.server, ServerSGD) and settings.server.momentum > 0
    return frozenset(looked_at | ({r - 1 for r in looked_at} if momentum else set()))


def check_attacks(experiment: "Experiment", federation: Federation) -> None:
    """Refuse an attack on the updates whose pictures, rounds or victims this federation can't give it.

    Raises:
        ConfigError: naming what would be right.
    """
    leakage, rounds = experiment.leakage, experiment.federation.rounds
    if leakage is None:
        return
    affordable = federation.plan.affordable() if federation.plan else None
    rounds = rounds if affordable is None else min(rounds, affordable)
    domain, name = experiment.task.spec.domain, type(leakage.attack).__name__
    hint = "none, or task.features=null: updates are of feature maps, whose reconstructions are no pictures"
    require(domain != "feature map", "leakage", name, hint)
    _no_pairs(experiment, "leakage", name)
    require(max(leakage.rounds) <= rounds, "leakage.rounds", leakage.rounds, f"rounds from 1 to {rounds}")
    patients = federation.facts.patients is not None
    told = not patients or experiment.federation.local.steps is not None
    hint = "a number: how many steps an epoch over a client's patients has isn't told by its number of records"
    require(told, "federation.local.steps", None, hint)
    both = sorted(federation.watched & federation.attackers)
    require(not both, "leakage.victims", both, "clients that the poisoner doesn't own (it owns the last ones)")
    _check_coalitions(experiment, leakage, federation)


def check_inference(experiment: "Experiment", federation: Federation) -> None:
    """Refuse an inference that this federation can't give what it asks for, and have it keep what it can.

    Raises:
        ConfigError: naming what would be right.
    """
    inference = experiment.inference
    if inference is None:
        return
    _no_pairs(experiment, "inference", type(inference).__name__)
    if inference.planted:
        hint = "none: canaries are trained on, so what leaks of the others is measured in a run without them"
        require(experiment.leakage is None, "leakage", type(experiment.leakage).__name__, hint)
    if inference.reads_updates and federation.defense.channel.plaintext:
        federation.watched = frozenset(range(federation.clients))
    try:
        inference.check(federation)
    except ConfigError as error:
        raise error if error.field.startswith("federation.") else error.under("inference") from None


def _no_pairs(experiment: "Experiment", field: str, name: str) -> None:
    spec = experiment.task.spec
    hint = f"none: {spec.name} has pairs of a picture and a caption, whose loss is of whole batches"
    require(spec.domain != "pair", field, name, hint)


def craft(leakage: Leakage, federation: Federation) -> None:
    """Have the operator send its victims the attack's model, in the rounds that are attacked.

    Raises:
        ConfigError: where no such model can be sent, or this model can't be made into one.
    """
    attack: Any = leakage.attack
    channel, name = federation.defense.channel, type(attack).__name__
    require(
        hasattr(attack, "craft"), "leakage.attack", name, "an attack with craft(), since it needs model_modification"
    )
    sealed = getattr(channel, "downlink", "plain") == "sealed"
    hint = f"downlink=plain: the operator of a sealed downlink can't have model_modification, which {name} needs"
    require(not sealed, "defense.channel.downlink", "sealed", hint)
    federation.distribution = Targeted(attack, federation.public, federation.watched)
    federation.crafting = frozenset(leakage.rounds)
    try:
        attack.craft(federation.public, federation.layout.read(federation.model))
    except AttackFailed as failure:
        model = type(federation.model).__name__
        raise ConfigError("model", model, f"a model that {name} can craft: {failure.reason}") from None


def _check_coalitions(experiment: "Experiment", leakage: Leakage, federation: Federation) -> None:
    """Colluders are others than the victim, and compute their updates a second time."""
    several = max(number for *_, number in leakage.coalitions)
    most = federation.clients - 1
    require(several <= most, "leakage.adversaries", several, f"at most {most} colluding clients, all but the victim")
    defense, poisoner = experiment.defense, experiment.poisoning
    noisy = defense.local.private or defense.local.noised
    drawn = noisy and defense.privacy is not None and defense.privacy.noise_source == "system"
    hint = "colluding clients only where a client's noise can be drawn again: noise_source=seeded"
    require(not (several and drawn), "leakage.adversaries", list(leakage.adversaries), hint)
    reads = federation.reads_updates or (poisoner is not None and (poisoner.pools or "rule" in poisoner.asks))
    hint = "no colluding clients beside a poisoner that makes its updates of others', or of the rule in force"
    require(not (several and reads), "leakage.adversaries", list(leakage.adversaries), hint)
