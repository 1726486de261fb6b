"""``privbench epsilon`` and ``privbench noise``: what a mechanism guarantees, and the noise that a guarantee takes."""

import argparse
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from privbench.defenses.accounting.accountant import Answer, Terms, answer, round_up
from privbench.defenses.accounting.calibration import noise_multiplier
from privbench.defenses.accounting.history import (
    LARGEST_EPSILON,
    Adjacency,
    History,
    Name,
    Sampling,
    check,
    noiseless,
    sampled,
)

BAD_INPUT = 2
_LIBRARIES = {"dp-accounting": "dp-accounting", "Opacus": "opacus", "analytic": "scipy"}
_NEIGHBOURS: dict[Adjacency, str] = {
    "add_remove": "neighbours add or remove one unit, whose clipped contribution is at most C",
    "zero_out": "in one of two neighbours a unit's contribution counts as zero; that it takes part isn't hidden",
    "replace": "in one of two neighbours a unit is another one: their clipped contributions lie 2 C apart",
}
_DRAWS: dict[str, str] = {
    "poisson": "every step draws each unit by itself, with probability q; the adversary doesn't learn who was drawn",
    "fixed": "every step draws a cohort of one size without replacement; the adversary doesn't learn who was drawn",
    "none": "every unit takes part in every step",
}
_STEPS = "Gaussian noise of standard deviation sigma C on every step's sum, independent, secret and exact real numbers"


def epsilon(arguments: list[str]) -> int:
    """``privbench epsilon``: the status to exit with."""
    parser = _parser("epsilon", "The epsilon that noisy, sampled steps guarantee: proven upper bounds.")
    parser.add_argument("--noise-multiplier", type=float, metavar="SIGMA", help="noise over the clip of the sum")
    parser.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="JSON instead: a list of [sampling rate, noise multiplier, steps] for steps that differ",
    )
    options = parser.parse_args(arguments)
    try:
        found = answer(_history(options), _delta(options), _terms(options))
    except ValueError as error:
        return _refuse("epsilon", error)
    _print(found, options.json)
    return 0


def noise(arguments: list[str]) -> int:
    """``privbench noise``: the status to exit with."""
    parser = _parser("noise", "The least noise multiplier (to 0.1%) that guarantees an epsilon.")
    parser.add_argument("--epsilon", type=float, required=True, metavar="EPSILON", help="the target")
    options = parser.parse_args(arguments)
    try:
        target, delta, terms = options.epsilon, _delta(options), _terms(options)
        if not 0 < target <= LARGEST_EPSILON:
            raise ValueError(f"epsilon = {target!r}: positive, and at most {LARGEST_EPSILON:g}")
        rate, steps = _given(options, "sampling_rate", "steps")
        check([((rate, 1.0), steps)], delta)
        if not steps:
            raise ValueError("steps = 0: at least 1")
        sigma = noise_multiplier(target, delta, rate, steps, terms)
        found = answer([((rate, sigma), steps)], delta, terms)
    except ValueError as error:
        return _refuse("noise", error)
    _print(found, options.json, noise_multiplier=sigma)
    return 0


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"privbench {command}",
        description=description,
        epilog="Unit, clip and what a step is are yours: a record and a step of DP-SGD, or a client and a round.",
    )
    parser.add_argument("--sampling-rate", type=float, metavar="Q", help="share of the units in a step, in (0, 1]")
    parser.add_argument("--steps", type=int, metavar="T", help="how many")
    parser.add_argument("--delta", type=float, required=True, metavar="D", help="in (0, 1), below 1 over the units")
    parser.add_argument("--units", type=int, metavar="N", help="records or clients: refuses a delta from 1/N")
    parser.add_argument("--accountant", choices=get_args(Name), default="pld", help="default: pld, the tightest")
    parser.add_argument("--adjacency", choices=get_args(Adjacency), default="add_remove", help="default: add_remove")
    parser.add_argument("--sampling", choices=get_args(Sampling), default="poisson", help="default: poisson")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _terms(options: argparse.Namespace) -> Terms:
    return Terms(options.accountant, options.adjacency, options.sampling)


def _delta(options: argparse.Namespace) -> float:
    delta, units = options.delta, options.units
    if units is not None and units < 1:
        raise ValueError(f"units = {units}: at least 1")
    if units is not None and not delta < 1 / units:
        raise ValueError(f"delta = {delta!r}: below 1/units = {1 / units:.3g}")
    return delta


def _given(options: argparse.Namespace, *names: str) -> list[Any]:
    missing = [n for n in names if getattr(options, n) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    return [getattr(options, n) for n in names]


def _history(options: argparse.Namespace) -> History:
    names = ("sampling_rate", "noise_multiplier", "steps")
    if options.history is None:
        rate, sigma, steps = _given(options, *names)
        return (((rate, sigma), steps),)
    given = [n for n in names if getattr(options, n) is not None]
    if given:
        raise ValueError(f"{given[0]} = {getattr(options, given[0])}: leave it out, history says it")
    try:
        rows = json.loads(options.history.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"history = {options.history}: a JSON file that can be read ({error})") from None
    number = (int, float)
    sound = isinstance(rows, list) and all(
        isinstance(r, list) and len(r) == 3 and all(isinstance(v, number) and not isinstance(v, bool) for v in r)
        for r in rows
    )
    if not sound:
        raise ValueError(f"history = {options.history}: a list of [sampling rate, noise multiplier, steps]")
    return tuple(((rate, sigma), steps) for rate, sigma, steps in rows)


def _print(found: Answer, as_json: bool, **more: float) -> None:
    terms = found.terms
    drawn = terms.sampling if sampled(found.history) else "none"
    method = f"{found.accountant}; {_library(found)}"
    assumptions = [_NEIGHBOURS[terms.adjacency], _DRAWS[drawn], _STEPS]
    if as_json:
        row = {
            **more,
            "epsilon": _finite(found.epsilon),
            "rdp_epsilon": None if found.rdp_epsilon is None else _finite(found.rdp_epsilon),
            "delta": found.delta,
            "accountant": terms.accountant,
            "adjacency": terms.adjacency,
            "sampling": drawn,
            "history": [[rate, sigma, steps] for (rate, sigma), steps in found.history],
            "method": method,
            "assumptions": assumptions,
        }
        if math.isinf(found.epsilon):
            bare = "a step without noise: epsilon is infinite"
            over = f"{terms.accountant} answers infinity where its numbers overflow: use another accountant"
            row["reason"] = bare if noiseless(found.history) else over
        print(json.dumps(row, indent=2))
        return
    for name, value in more.items():
        print(f"{name.replace('_', ' ')}  {round_up(value)}")
    print(f"epsilon      {_words(found.epsilon)} at delta {found.delta:g}   ({method})")
    second = "no proof for these terms" if found.rdp_epsilon is None else _words(found.rdp_epsilon)
    print(f"epsilon RDP  {second}")
    print("assumes")
    for line in assumptions:
        print(f"  - {line}")


def _library(found: Answer) -> str:
    """What computed it, and its version."""
    library = next((name for word, name in _LIBRARIES.items() if found.accountant.startswith(word)), "privbench")
    return f"{library} {version(library)}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _words(value: float) -> str:
    return f"{round_up(value):g}" if math.isfinite(value) else "infinite"


def _refuse(command: str, error: ValueError) -> int:
    print(f"privbench {command}: {error}", file=sys.stderr)
    return BAD_INPUT


def dp(arguments: list[str]) -> int:
    """``privbench dp verify``: the status to exit with; 1 if the statement doesn't hold."""
    parser = argparse.ArgumentParser(
        prog="privbench dp", description="Recompute what a private run states, from its statement alone."
    )
    actions = parser.add_subparsers(required=True, metavar="verify")
    verifying = actions.add_parser("verify", help="check a privacy_statement.json")
    verifying.add_argument("statement", type=Path, metavar="STATEMENT")
    verifying.add_argument(
        "--opening", type=Path, metavar="FILE", help="the run's privacy_opening.json: checks digests"
    )
    verifying.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    from privbench.defenses.accounting.verification import load, verify

    try:
        checks = verify(load(options.statement), load(options.opening) if options.opening else None)
    except ValueError as error:
        return _refuse("dp verify", error)
    holds = all(c.fault is None for c in checks)
    if options.json:
        rows = [{"check": c.name, "holds": c.fault is None, "why": c.fault or c.found} for c in checks]
        print(json.dumps({"holds": holds, "checks": rows}, indent=2))
        return int(not holds)
    wide = max(len(c.name) for c in checks)
    for check_ in checks:
        print(f"{'ok  ' if check_.fault is None else 'FAIL'}  {check_.name:{wide}}  {check_.fault or check_.found}")
    print("the statement holds" if holds else "the statement does not hold")
    return int(not holds)
