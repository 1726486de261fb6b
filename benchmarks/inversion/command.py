"""``privbench invert``: attack a gradient or an update from a file."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from privbench.benchmarks.build import ConfigError, require
from privbench.benchmarks.inversion.attacks import options as attacks

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

DESCRIPTION = """\
Reconstruct the records behind a gradient or an update of your own model. With --inputs, the gradient is first
recomputed at the true inputs; where it isn't the dump's, the answer is what is off, and no attack is made.

example:
  privbench invert --model mymodels:make --weights weights.pt --update gradient.pt --shape 1,28,28 \\
      --inputs truth.npz --set iterations=600 --out found
"""


def invert(arguments: list[str]) -> int:
    """0 when attacked; 1 when the attack failed; 2 for bad input, and for a dump that isn't the inputs' gradient."""
    options = _parser().parse_args(arguments)
    try:
        with _current_folder():
            return _run(options)
    except ConfigError as error:
        print(f"privbench invert: {_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"privbench invert: {_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except Exception as error:  # the model, the loss and the attack are the user's, and can raise anything
        print(f"privbench invert: {_line(f'{type(error).__name__}: {error}')}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("privbench invert: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="privbench invert", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own = parser.add_argument_group("your model and what it sent")
    own.add_argument(
        "--model", required=True, metavar="MODULE:NAME", help="nn.Module, or a class or function that makes one"
    )
    own.add_argument("--weights", metavar="FILE", help="state dict at which the client began (default: the factory's)")
    own.add_argument("--update", metavar="FILE", help="tensors in the order of parameters(), by name, or one vector")
    own.add_argument("--before", metavar="FILE", help="state dict before local training, with --after: for --update")
    own.add_argument("--after", metavar="FILE", help="state dict after local training")
    own.add_argument("--shape", required=True, type=_integers, metavar="N,N,N", help="of one input: 1,28,28")
    own.add_argument("--records", type=int, metavar="N", help="behind the update (default: those of --inputs, or 1)")
    own.add_argument("--classes", type=int, metavar="N", help="default: found by a forward pass")
    own.add_argument("--kind", choices=("gradient", "update"), help="update: w_after - w_before (default: gradient)")
    own.add_argument("--learning-rate", type=float, metavar="X", help="the client's, for an update")
    own.add_argument("--local-steps", type=int, default=1, metavar="N", help="the client's, for an update (default: 1)")
    own.add_argument("--batch-size", type=int, metavar="N", help="records a local step (default: all)")
    own.add_argument("--momentum", type=float, default=0.0, metavar="X", help="of the client's SGD, for an update")
    own.add_argument("--loss", default="cross_entropy", metavar="NAME", help="cross_entropy, mse, or MODULE:FUNCTION")
    own.add_argument("--mode", choices=("eval", "train"), default="eval", help="of the model on the client")
    own.add_argument("--mean", type=_floats, default=[0.0], metavar="X[,X]", help="of standardisation, by channel")
    own.add_argument("--std", type=_floats, default=[1.0], metavar="X[,X]", help="of standardisation, by channel")
    own.add_argument("--clip", type=float, metavar="X", help="published L2 bound on the whole update")
    own.add_argument("--noise-std", type=float, default=0.0, metavar="X", help="published noise on each number of it")
    own.add_argument("--pruned", action="store_true", help="it was pruned: entries that are exactly 0 say nothing")
    attack = parser.add_argument_group("the attack")
    attack.add_argument(
        "--attack", default="inverting_gradients", metavar="NAME", help=f"{', '.join(attacks())}, or a dotted path"
    )
    attack.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of the attack")
    attack.add_argument("--labels", metavar="L", help="inferred, joint, known (those of --inputs), or 3,1,4")
    attack.add_argument("--seed", type=int, default=0, metavar="N")
    attack.add_argument("--inputs", metavar="FILE", help="the truth: x and y, to check the dump and measure the attack")
    attack.add_argument("--force", action="store_true", help="attack even if the dump isn't the inputs' gradient")
    attack.add_argument("--out", type=Path, metavar="DIR", help="for arrays, picture or table, and report.json")
    return parser


def _run(options: argparse.Namespace) -> int:
    from privbench.attacks.leakage.attack import AttackFailed
    from privbench.benchmarks.inversion import output
    from privbench.benchmarks.inversion.invert import DumpDiffers, attack_case
    from privbench.benchmarks.inversion.result import versions

    settings = {"set": _settings(options.set)}
    folder = options.out
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        require(os.access(folder, os.W_OK), "out", str(folder), "a folder that can be written to")
    inputs = None if options.inputs is None else _inputs(options.inputs)
    labels = _labels(options.labels)
    case, notes = _case(options, inputs, labels)
    resolved = {"records": case.records, "kind": case.public.kind, "classes": case.public.classes}
    shown = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()} | settings | resolved
    unfinished = {"schema": 1, "settings": shown, "notes": notes, "versions": versions()}
    try:
        found = attack_case(case, options.attack, settings["set"], labels, inputs, options.seed, options.force)
    except DumpDiffers as error:
        if folder is not None:
            refused = {"status": "refused", "reason": str(error), "diagnosis": asdict(error.diagnosis)}
            output.report(folder, {**unfinished, **refused})
        print(f"privbench invert: {_line(error)}. No attack was made (--force makes it)", file=sys.stderr)
        return BAD_INPUT
    except AttackFailed as failure:
        if folder is not None:
            output.report(folder, {**unfinished, "status": "failed", "reason": failure.reason})
        print(f"privbench invert: the attack failed: {_line(failure)}", file=sys.stderr)
        return FAILED
    _print(found, notes)
    if folder is not None:
        for path in output.write(found, folder, {**shown, "model_notes": notes}):
            print(path)
    return DONE


def _case(options: argparse.Namespace, inputs: Any, labels: Any) -> tuple[Any, list[str]]:
    """The case, and notes on where its parts are from."""
    from privbench.benchmarks.inversion.case import make_case
    from privbench.benchmarks.inversion.files import read
    from privbench.benchmarks.inversion.model import load_weights, make_model

    pair = (options.before, options.after)
    require((options.update is None) == all(pair), "update", options.update, "--update FILE, or --before and --after")
    require(all(pair) or not any(pair), "after", options.after, "both --before FILE and --after FILE")
    require(not all(pair) or options.weights is None, "weights", options.weights, "not given: --before has them")
    require(not all(pair) or options.kind != "gradient", "kind", options.kind, "update, with --before and --after")
    model, notes = make_model(options.model, options.seed), []
    weights = options.before or options.weights
    if weights is None:
        notes.append("weights are the factory's own: a random initialisation must be the one at which the client began")
    else:
        load_weights(model, read(weights, "before" if options.before else "weights"), "weights", weights)
    shown = options.update or options.after
    update = read(shown, "update") if options.update else _difference(model, read(shown, "after"), shown)
    count = len(labels) if isinstance(labels, list) else None if inputs is None else _count(inputs[0], options.shape)
    case = make_case(
        model,
        update,
        options.shape,
        classes=options.classes,
        records=options.records if options.records is not None else count or 1,
        kind="update" if options.before else options.kind or "gradient",
        learning_rate=options.learning_rate,
        local_steps=options.local_steps,
        batch_size=options.batch_size,
        loss=options.loss,
        mode=options.mode,
        mean=options.mean,
        std=options.std,
        clip=options.clip,
        noise_std=options.noise_std,
        pruned=options.pruned,
        momentum=options.momentum,
        shown=shown,
    )
    return case, notes


def _difference(model: Any, after: Any, shown: str) -> dict[str, Any]:
    """``after - before`` of trained parameters and float buffers."""
    import copy

    from privbench.benchmarks.inversion.model import load_weights

    later = copy.deepcopy(model)
    load_weights(later, after, "after", shown)
    trained = {n for n, p in model.named_parameters() if p.requires_grad} | {n for n, _ in model.named_buffers()}
    before, moved = model.state_dict(), later.state_dict()
    return {n: moved[n] - before[n] for n in before if n in trained and before[n].is_floating_point()}


def _inputs(path: str) -> tuple[Any, Any]:
    from privbench.benchmarks.inversion.files import read

    found = read(path, "inputs")
    x, y = (found.get("x"), found.get("y")) if isinstance(found, dict) else (None, None)
    if x is None or y is None:
        raise ConfigError("inputs", path, "two arrays named x and y, as np.savez(FILE, x=..., y=...) writes them")
    return x, y


def _count(x: Any, shape: list[int]) -> int:
    return 1 if x.ndim == len(shape) else len(x)


def _labels(text: str | None) -> Any:
    if text is None or text in ("inferred", "joint", "known"):
        return text
    try:
        return [int(part) if part.strip().lstrip("-").isdigit() else float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError("labels", text, "one of inferred, joint, known, or numbers such as 3,1,4") from None


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Values as Hydra reads overrides, so that they mean what they mean in ``privbench run``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found: dict[str, Any] = {}
    for text in pairs:
        right = "FIELD=VALUE, such as iterations=600"
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            raise ConfigError("set", text, right) from None
        plain = override.type is not None and override.type.name == "CHANGE" and not override.is_sweep_override()
        require(plain, "set", text, right)
        found[str(override.key_or_group)] = override.value()
    return found


def _print(found: Any, notes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "attack": type(found.attack).__name__,
        "labels": " ".join(f"{v:g}" for v in found.y.tolist()),
        "gradient objective": f"{found.reconstruction.objective:.3g}",
        "seconds": f"{found.seconds:.1f}",
    }
    value = found.metrics
    if "psnr_db" in value:
        guesses = {n.removeprefix("psnr_db_"): v for n, v in value.items() if n.removeprefix("psnr_db_") in _GUESSES}
        best = max(guesses, key=lambda n: guesses[n])
        rows["PSNR"] = f"{value['psnr_db']:.1f} dB (best trivial guess: {guesses[best]:.1f} dB, {best})"
        rows["SSIM"] = f"{value['ssim']:.3f} (trivial: {value[f'ssim_{best}']:.3f})"
    elif "mse" in value:
        rows["MSE"] = f"{value['mse']:.3g} (guessing the mean: {value['mse_mean']:.3g})"
    if "label_accuracy" in value:
        rows["label accuracy"] = f"{value['label_accuracy']:.0%}"
    for name, text in rows.items():
        table.add_row(name, text)
    Console().print(table)
    for note in (*notes, *found.notes):
        print(f"note: {_line(note)}")


_GUESSES = ("grey", "mean_colour", "mosaic")


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: whole numbers such as 1,28,28") from None


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: numbers such as 0.5,0.5,0.5") from None


def _line(text: object) -> str:
    """One line of at most 900 characters, without control characters."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in str(text)).split())
    return line if len(line) <= 900 else f"{line[:897]}..."
