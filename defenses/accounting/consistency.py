"""Whether the parts of a privacy statement are of one run: claims, mechanism, sampling and ledger.

Epsilon follows from the history, and the history from the mechanism, the sampling and the ledger. Each claim is
therefore derived a second time from these, so that no field that epsilon rests on can be changed alone. Who changes all
of them alike states another run, and no document shows that it wasn't run.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from privbench.defenses.accounting import cohorts, wording
from privbench.defenses.accounting.history import History, noiseless, summed

Fault = tuple[str, str]
"""A field, and what is wrong with it."""

_ADVERSARIES = ("model_recipient", "server_operator")
_HIDING, _SEEN = ("add_remove", "replace"), ("zero_out", "replace")


@dataclass(frozen=True)
class _Derived:
    """What a claim has to say.

    Args:
        history: whose epsilon it is.
        adjacency: one of these.
        fields: by name; others are free.
    """

    history: History
    adjacency: tuple[str, str]
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a statement says of its run beside its claims. Its form has been checked."""

    statement: Mapping[str, Any]

    @property
    def unit(self) -> str:
        return self.statement["claims"][0]["unit"]

    @property
    def noise(self) -> wording.Noise | None:
        """Who adds it to whole updates; ``None``: every client to every local step's sum."""
        found = {text: name for name, text in wording.WHERE.items()}
        return found.get(self.statement["mechanism"]["added"])

    @property
    def entries(self) -> list[tuple[Mapping[str, float], int]]:
        return [(e["charge"], int(e["charges"])) for e in self.statement["ledger"]["entries"]]

    @property
    def distribution(self) -> Mapping[str, str | None]:
        """``grid`` and ``bands`` of the noise, where they are there."""
        found = wording.NOISE.fullmatch(self.statement["mechanism"]["noise"])
        return found.groupdict() if found else {"grid": None, "bands": None}

    @property
    def more(self) -> Mapping[str, str | None]:
        """``diagonals`` of correlated noise, and noise on the ``count`` and the ``sum`` of an adapted clip."""
        text, base = self.statement["claims"][0]["mechanism"], self.mechanism
        found = wording.MORE.fullmatch(text[len(base) :]) if text.startswith(base) else None
        return found.groupdict() if found else {"diagonals": None, "count": None, "sum": None}

    @property
    def mechanism(self) -> str:
        """How claims begin that say what was done."""
        if self.noise is None:
            return wording.local_mechanism(self.unit)
        grid = self.distribution["grid"]
        return wording.MECHANISMS[self.noise] + (f", {grid}" if grid else "")

    @property
    def amplified(self) -> bool:
        """Whether it counts on how clients are drawn."""
        return self.noise == "central" and self.more["diagonals"] is None

    @property
    def in_receipts(self) -> bool:
        """Whether receipts name the sizes of cohorts whose sampling amplifies."""
        poisson = self.statement["sampling"]["scheme"] == "poisson"
        sampled = poisson and any(q < 1 for q, _ in self.charged("sampling_rate"))
        return self.unit == "client" and self.amplified and sampled and not self.reads_updates

    @property
    def reads_updates(self) -> bool:
        """Whether whoever runs the server reads single updates."""
        return self.statement["mechanism"]["operator_reads"] == wording.READS[True]

    @property
    def counted(self) -> int:
        """In how many charges one client can have taken part, where clients aren't drawn independently."""
        sampling, ledger = self.statement["sampling"], self.statement["ledger"]
        most, lost = sampling["most_participations"], ledger["charges"] - ledger["rounds"]
        apart = -(-ledger["rounds"] // sampling["least_separation"])
        most = math.inf if most is None else most
        # Whoever was in a row of correlated noise is in its repetition, whether invited to it or not.
        return int(min(apart, most) + lost if self.noise == "central" else min(apart + lost, most))

    def charged(self, name: str) -> list[tuple[float, int]]:
        """One of the ledger's numbers, with how often it was charged."""
        return [(charge[name], n) for charge, n in self.entries if name in charge]

    def derived(self, claim: Mapping[str, Any]) -> _Derived:
        """What this claim has to say."""
        if self.unit != "client":
            return self._local(self.statement["mechanism"]["local"])
        who = claim["adversary"]
        if self.amplified and who == "model_recipient":
            rates, sigmas = self.charged("sampling_rate"), self.charged("noise_multiplier")
            history = summed(((q, s), n) for (q, n), (s, _) in zip(rates, sigmas, strict=True))
            return _Derived(history, _HIDING, self._drawn())
        if who == "model_recipient":
            apart = self.statement["sampling"]["least_separation"]
            central = self.noise == "central"
            return self._unsampled(
                "noise_multiplier", wording.once_in(apart, self.counted) if central else wording.SEES_SUMS
            )
        if who == wording.RECEIPT_READER:
            return self._unsampled("noise_multiplier", wording.READS_RECEIPTS)
        if not self.reads_updates:
            return self._unsampled("noise_multiplier", wording.SEES_WHO)
        if self.noise == "central":
            bare = (((1.0, 0.0), max(1, self.statement["ledger"]["charges"])),)
            return _Derived(bare, _HIDING, {**self._drawn(), "why": wording.READS_UPDATES})
        return self._unsampled("message_multiplier", wording.READS_MESSAGES)

    def _drawn(self) -> dict[str, Any]:
        rates = [q for q, _ in self.charged("sampling_rate")]
        rate = {"sampling_rate": min(rates)} if rates and self.amplified else {"sampling_rate": self.expected}
        return {"sampling": self.statement["sampling"]["scheme"], **rate, **self._least("noise_multiplier")}

    @property
    def expected(self) -> float | None:
        """The share of all clients that sums are divided by; ``None`` where that is no number."""
        normaliser, clients = self.statement["mechanism"]["normaliser"], self.statement["sampling"]["population"]
        return None if isinstance(normaliser, str) else normaliser / clients

    def _least(self, name: str) -> dict[str, Any]:
        sigmas = [s for s, _ in self.charged(name)]
        return {"noise_multiplier": min(sigmas)} if sigmas else {}

    def _unsampled(self, name: str, why: str) -> _Derived:
        sigmas = self.charged(name)
        if len({s for s, _ in sigmas}) == 1:
            sigmas = [(sigmas[0][0], self.counted)]
        fields: dict[str, Any] = {"sampling": "none", "sampling_rate": 1.0, "why": why, **self._least(name)}
        if self.noise != "central" and name == "message_multiplier":
            fields["not_covered"] = wording.NOT_COVERED
        return _Derived(summed(((1.0, s), n) for s, n in sigmas), _SEEN, fields)

    def _local(self, step: Mapping[str, Any] | None) -> _Derived:
        if step is None:
            return _Derived((), _HIDING)
        rate, sigma, times = step["sampling_rate"], step["noise_multiplier"], int(step["steps"]) * self.counted
        fields = {
            "sampling": "poisson",
            "sampling_rate": rate,
            "noise_multiplier": sigma,
            "participations_counted": self.counted,
            "not_covered": wording.not_covered(self.unit),
        }
        return _Derived(summed([((rate, sigma), times)]), _HIDING, fields)


def of_statement(statement: Mapping[str, Any]) -> Iterator[Fault]:
    """What of a statement, beside single claims, contradicts the rest."""
    run, claims = Run(statement), statement["claims"]
    mechanism, sampling = statement["mechanism"], statement["sampling"]
    who = sorted(c["adversary"] for c in claims)
    wanted = sorted((*_ADVERSARIES, *([wording.RECEIPT_READER] if run.in_receipts else [])))
    if who != wanted:
        yield "claims", f"are against {', '.join(who)}; there is one against each of {', '.join(wanted)}"
    for name in ("unit", "delta", "mechanism"):
        if len({c[name] for c in claims}) > 1:
            yield name, f"differs between claims: {', '.join(str(c[name]) for c in claims)}"
    if len({c["adjacency"] == "replace" for c in claims}) > 1:
        yield "adjacency", "is replace in some claims, and not in others"
    client = run.unit == "client"
    if mechanism["added"] not in wording.WHERE.values() or (run.noise is not None) != client:
        yield "mechanism: added", f"{mechanism['added']!r} is no mechanism of a {run.unit}-level guarantee"
    for name, right in (("scope", wording.scope(run.unit)), ("weights", wording.weights(run.unit))):
        if mechanism[name] != right:
            yield f"mechanism: {name}", f"{mechanism[name]!r}: a {run.unit}-level guarantee needs {right!r}"
    if (mechanism["local"] is None) != client:
        yield "mechanism: local", "belongs to guarantees that are given in local steps, and to these alone"
    if sampling["scheme"] != "poisson" and not client:
        yield "sampling: scheme", f"{sampling['scheme']}: batches of local steps are drawn by poisson"
    yield from _distribution(run)
    yield from _cohorts(run)


def _distribution(run: Run) -> Iterator[Fault]:
    mechanism, grid, bands = run.statement["mechanism"], run.distribution["grid"], run.distribution["bands"]
    if wording.NOISE.fullmatch(mechanism["noise"]) is None:
        yield "mechanism: noise", f"{mechanism['noise']!r} has no proof here"
    if grid and run.noise not in ("local", "distributed"):
        yield "mechanism: noise", "is discrete, and not added by clients"
    if run.more["diagonals"] is not None and not run.reads_updates:
        yield "mechanism: operator_reads", f"{wording.READS[False]!r}: whoever correlates the noise reads every update"
    diagonals = int(run.more["diagonals"] or 1)
    if diagonals != int(bands or 1):
        yield "mechanism: noise", f"is of {bands or 1} bands, and claims are of {diagonals}"
    apart = run.statement["sampling"]["least_separation"]
    if diagonals > apart:
        yield "sampling: least_separation", f"{apart}: {diagonals} bands count on at least as many rounds"


def _cohorts(run: Run) -> Iterator[Fault]:
    """What the ledger's charges are of, the number that sums are divided by, and limits on who takes part."""
    sampling, ledger = run.statement["sampling"], run.statement["ledger"]
    normaliser, clients = run.statement["mechanism"]["normaliser"], sampling["population"]
    wanted = {
        None: set(),
        "central": {"sampling_rate", "noise_multiplier"},
        "local": {"noise_multiplier", "message_multiplier"},
    }
    names = wanted.get(run.noise, wanted["local"])
    if any(set(charge) != names for charge, _ in run.entries):
        yield "ledger", f"entries need {', '.join(sorted(names)) or 'nothing'} of what was charged"
    if run.unit != "client":
        if normaliser != wording.EXPECTED_BATCH:
            yield "mechanism: normaliser", f"{normaliser!r}: {wording.EXPECTED_BATCH!r} in local steps"
        return
    rates = {q for q, _ in run.charged("sampling_rate")} or {1.0}
    low, high = (min(rates) * clients, max(rates) * clients) if run.amplified else (0, clients)
    low = clients if run.noise == "distributed" else low
    if isinstance(normaliser, str) or not low * (1 - 1e-9) <= normaliser <= high * (1 + 1e-9):
        yield "mechanism: normaliser", f"{normaliser!r}: from {low:g} to {high:g} clients are expected in a cohort"
    else:
        yield from cohorts.limits(run.statement)
    limited = sampling["most_participations"] is not None or sampling["least_separation"] > 1
    if limited and (run.amplified or run.noise == "distributed"):
        yield "sampling", "nobody may be kept out of cohorts under this mechanism"
    if run.noise == "central" and not run.amplified and rates != {1.0}:
        yield "ledger", f"is amplified by a rate of {min(rates):g}, and correlated noise isn't"
    if ledger["charges"] < ledger["rounds"]:
        yield "ledger", f"{ledger['charges']} charges for {ledger['rounds']} rounds"


def of_claim(claim: Mapping[str, Any], statement: Mapping[str, Any]) -> Iterator[Fault]:
    """What of a claim contradicts the rest of the statement."""
    run = Run(statement)
    derived, said = run.derived(claim), summed(((q, s), int(n)) for q, s, n in claim["history"])
    if said != derived.history:
        yield "history", f"{shown(said)}, and mechanism, sampling and ledger make it {shown(derived.history)}"
    if claim["adjacency"] not in derived.adjacency:
        yield "adjacency", f"{claim['adjacency']}: {' or '.join(derived.adjacency)} is what is guaranteed"
    for name, right in {**derived.fields, **_common(run)}.items():
        if not _same(claim.get(name), right):
            yield name, f"{claim.get(name)!r} is stated, and the rest makes it {right!r}"
    if claim.get("participations_realised", 0) > run.counted and "participations_counted" in derived.fields:
        yield "participations_realised", f"{claim['participations_realised']}, and {run.counted} at most are counted"
    if "participations_counted" in claim and "participations_counted" not in derived.fields:
        yield "participations_counted", "is of guarantees that are given in local steps"
    if not claim["mechanism"].startswith(run.mechanism) or not wording.MORE.fullmatch(
        claim["mechanism"][len(run.mechanism) :]
    ):
        yield "mechanism", f"{claim['mechanism']!r} isn't {run.mechanism!r}"
    yield from _adapted(run)
    yield from _shares(run, claim)
    if run.distribution["grid"] and "RDP" not in claim["accountant"] and not noiseless(derived.history):
        yield "accountant", f"{claim['accountant']!r}: RDP alone has a proof for sums of discrete noise"


def _same(one: Any, other: Any) -> bool:
    """Equal, but for the rounding of a quotient."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
    return math.isclose(one, other, rel_tol=1e-12) if numbers else one == other


def _common(run: Run) -> dict[str, Any]:
    mechanism = run.statement["mechanism"]
    fields = {name: mechanism[name] for name in ("clip", "noise_source")}
    return {**fields, "rounds": run.statement["ledger"]["charges"]}


def _adapted(run: Run) -> Iterator[Fault]:
    """Noise on the sum and on the count have to cost together what is charged (Andrew et al. 2021, theorem 1)."""
    count, update = (run.more[n] for n in ("count", "sum"))
    sigmas = [s for s, _ in run.charged("noise_multiplier")]
    if count is None or update is None or not sigmas or not min(sigmas):
        return
    try:
        made = (float(update) ** -2 + (2 * float(count)) ** -2) ** -0.5
    except (ValueError, ArithmeticError):
        made = math.nan
    if not math.isclose(made, min(sigmas), rel_tol=1e-5):
        both = f"noise of {update} on the sum and {count} on the count cost what {made:.6g} does"
        yield "mechanism", f"{both}, and {min(sigmas):.6g} is charged"


def _shares(run: Run, claim: Mapping[str, Any]) -> Iterator[Fault]:
    """Where clients add the noise, how many of them a sum counts on is a part of the claim."""
    multipliers = ("noise_multiplier", "message_multiplier")
    charged = [tuple(c[m] for m in multipliers) for c, _ in run.entries if set(c) == set(multipliers)]
    of_messages = claim["adversary"] != "model_recipient" and run.reads_updates
    if not charged or run.noise == "central" or of_messages:
        return
    for total, message in charged:
        if (total > 0) != (message > 0):
            yield "assumes", f"sums hold noise of {total:g} over the clip, and messages of {message:g}"
    counts, said = max(math.ceil((s / m) ** 2 - 1e-6) if m else 1 for s, m in charged), claim.get("assumes")
    if counts > (most := cohorts.shares(run.statement)):
        yield "assumes", f"sums hold the noise of {counts} clients, and cohorts have {most} for sure"
    # Discrete noise is accounted for as if it were a little less than it is.
    right = {wording.assumes(n) for n in ((counts, counts + 1) if run.distribution["grid"] else (counts,))}
    if counts > 1 and said not in right:
        yield "assumes", f"{said!r}: sums hold the noise of {counts} clients"


def shown(history: History) -> str:
    """A history in words."""
    return ", ".join(f"{n} x (q {q:.4g}, sigma {s:.4g})" for (q, s), n in history) or "empty"
