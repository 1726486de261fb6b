"""What a reader of an inversion's numbers has to know."""

from torch import nn

from privbench.attacks.leakage.attack import Attack, Reconstruction
from privbench.attacks.leakage.observe import Observation
from privbench.benchmarks.inversion.case import Case
from privbench.benchmarks.inversion.diagnosis import Diagnosis
from privbench.benchmarks.inversion.explain import masked
from privbench.benchmarks.inversion.recipe import declared, recompute
from privbench.benchmarks.measures.comparison import is_image
from privbench.benchmarks.tasks.task import Split

LITTLE = 0.5
"""Share of a dump's squared norm below which a reconstruction doesn't explain it."""


def notes(
    case: Case,
    attack: Attack,
    observation: Observation,
    diagnosis: Diagnosis | None,
    found: Reconstruction,
    truth: Split | None,
) -> tuple[str, ...]:
    """One sentence each."""
    return (
        *_on_the_dump(case, observation, diagnosis, truth),
        *_on_side_information(case, attack),
        *_on_the_model(case),
        *_on_what_was_found(case, found),
    )


def _on_the_dump(case: Case, observation: Observation, diagnosis: Diagnosis | None, truth: Split | None) -> list[str]:
    public, said = case.public, []
    if diagnosis is not None:
        said.append(str(diagnosis))
    else:
        said.append("nothing shows that the update is of this model: no inputs were given to recompute it")
    if is_image(public):
        raw = not bool(public.mean.any()) and bool((public.std == 1).all())
        if truth is None and raw:
            said.append("pixels are presumed raw, in [0, 1]: no mean and std of a standardisation were given")
        elif truth is not None:
            pixels = truth.x * public.std + public.mean
            outside = float(((pixels < 0) | (pixels > 1)).double().mean())
            if outside:
                said.append(
                    f"{outside:.2g} of the true pixels lie outside [0, 1] and are clamped: PSNR and SSIM are of that"
                )
    if case.known.pruned:
        vector = case.dump.vector()
        share = 0.0 if vector is None else float((vector == 0).double().mean())
        said.append(f"{share:.1%} of the update is 0 and was taken for pruned; attacks by optimisation leave it out")
    if not observation.exact:
        said.append(f"{case.steps} local steps: an attack that doesn't unroll them sees an averaged gradient")
    return said


def _on_side_information(case: Case, attack: Attack) -> list[str]:
    how, said = getattr(attack, "labels", None), []
    if how == "known":
        said.append("labels were told to the attack (side information)")
    elif how == "inferred" and case.loss.name != "cross_entropy":
        said.append(f"labels are inferred as if the loss were softmax cross entropy; it is {case.loss.name}")
    return [*said, f"the number of records, {case.records}, was told to the attack"]


def _on_the_model(case: Case) -> list[str]:
    model = case.public.model
    dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())
    return ["dropout is switched off: its masks aren't known"] if dropout and model.training else []


def _on_what_was_found(case: Case, found: Reconstruction) -> list[str]:
    said = [f"the attack found {len(found.x)} of {case.records} records"] if len(found.x) != case.records else []
    share = explained(case, found)
    if share is not None and share < LITTLE and not case.known.noise_std:
        said.append(
            f"the records found explain {share:.0%} of the update (squared norm): they are no reconstruction. The "
            "attack failed, or the update is of other weights, another model, or more records"
        )
    return said


def explained(case: Case, found: Reconstruction) -> float | None:
    """The share of the dump's squared norm, in [0, 1], that a multiple of the gradient at the records found explains.

    Returns:
        ``None`` where they have none: labels that aren't known, for one.
    """
    vector = case.dump.vector()
    gradient = recompute(case, declared(case, found.x.float(), found.y))
    if vector is None or gradient is None:
        return None
    seen = vector.double()
    gradient = masked(case, gradient.double(), seen)
    length = float(gradient.norm() * seen.norm())
    along = float(gradient @ seen) * (1 if case.unit > 0 else -1)
    return max(0.0, along / length) ** 2 if length else None
