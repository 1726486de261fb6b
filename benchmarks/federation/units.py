"""What a guarantee counts: records, clients with an audit's canaries among them, and patients."""

from typing import TYPE_CHECKING

import torch

from privbench.attacks.inference.canaries import Planted
from privbench.benchmarks.build import ConfigError, require
from privbench.defenses.accounting.plan import RecordPlan
from privbench.defenses.local.per_sample import Units

if TYPE_CHECKING:
    from privbench.benchmarks.federation.federation import Federation

MEASURED = 256
"""Records at most in a step that is timed."""


def plant(federation: "Federation") -> Planted:
    """The audit's canaries.

    Raises:
        ConfigError: if they can't be part of this federation.
    """
    assert federation.canaries is not None
    claim = federation.defense.privacy.unit if federation.defense.privacy else None
    hint = "record or client: there are no canaries for patients"
    require(claim != "patient", "defense.privacy.unit", claim, hint)
    unit = federation.canaries.unit or claim or "record"
    hint = f"null, or {claim}: a claim is audited with canaries of its unit"
    require(claim in (None, unit), "inference.canaries.unit", unit, hint)
    hint = "none: in an audited run the canaries alone are the suite's own"
    require(federation.poisoner is None, "poisoning", type(federation.poisoner).__name__, hint)
    hint = "false: what attested clients train on is their host's, and canary gradients aren't records"
    require(not federation.attests, "defense.channel.attest_clients", True, hint)
    spec, data = federation.task.spec, federation.task.data.train
    try:
        return federation.canaries.plant(
            unit, federation.clients, federation.layout.trainable, data, len(spec.classes), federation.seed
        )
    except ConfigError as error:
        raise error.under("inference.canaries") from None


def patients(federation: "Federation") -> tuple[int, ...] | None:
    """Whose records each client has, where a guarantee is for patients.

    Raises:
        ConfigError: if there are none here, or some are of several clients.
    """
    privacy, group = federation.defense.privacy, federation.task.data.train.group
    if privacy is None or privacy.unit != "patient":
        return None
    _check_patients(federation)
    assert group is not None
    return tuple(len(group[share].unique()) for share in federation.shares)


def _check_patients(federation: "Federation") -> None:
    """Refuse a guarantee for patients that other clients' or the test records are of, too.

    Raises:
        ConfigError: naming what would be right.
    """
    spec, data = federation.task.spec, federation.task.data
    field = "defense.privacy.unit"
    hint = f"record: {spec.name} doesn't say which patient a record is of"
    require(spec.group == "patient" and data.train.group is not None, field, "patient", hint)
    hint = "record: an attested client's guest is not told which patient a record is of"
    require(not federation.attests, field, "patient", hint)
    assert data.train.group is not None
    owners = [set(data.train.group[s].tolist()) for s in federation.shares]
    hint = "one that keeps a patient's records together: by_group or natural"
    together = sum(map(len, owners)) == len(set().union(*owners))
    require(together, "task.partition", type(federation.task.partition).__name__, hint)
    if data.test.group is not None:
        shared = set().union(*owners) & set(data.test.group.tolist())
        hint = f"record: {len(shared)} patients have training and test records"
        require(not shared, field, "patient", hint)


def like_a_step(federation: "Federation") -> Units:
    """As many units as a step of the client with most has, of any records: they are only timed."""
    plan, train = federation.plan, federation.task.data.train
    views = federation.settings.local.augmentation.multiplicity
    if isinstance(plan, RecordPlan) and plan.unit == "patient":
        views *= plan.guarantee.per_patient
    number = min(max(1, MEASURED // views), max(federation.facts.batch), len(train))
    some = train.take(torch.arange(number))
    x, y = (one.to(federation.device).repeat_interleave(views, 0) for one in (some.x, some.y))
    return Units(x, y, views)
