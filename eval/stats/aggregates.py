"""Published aggregates of erasure scores, by their published names.

Every accuracy is a fraction in [0, 1]; a percentage raises an error. Where a divisor is 0, a harmonic mean is 0, its
limit; a ratio to an original that never shows the concept is undefined and raises an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from erasure.errors import InputError

from .scores import Number, Rate, Score


def h_o(efficacy: Number, specificity: Number, generality: Number) -> float:
    """Return MACE's H_o for objects (Lu et al., CVPR 2024, arXiv:2403.06135).

        H_o = 3 / ((1 - Acc_e)^-1 + Acc_s^-1 + (1 - Acc_g)^-1)

    Args:
        efficacy: Acc_e, accuracy on the erased class, in [0, 1]; low is good.
        specificity: Acc_s, accuracy on the other classes, in [0, 1]; high is good.
        generality: Acc_g, accuracy on synonyms of the erased class, in [0, 1]; low is good.

    Returns:
        In [0, 1], higher is better; 0 if any of the three is at its worst.

    Raises:
        InputError: An accuracy is not a fraction.
    """
    erased, kept, synonyms = _fractions("h_o", efficacy=efficacy, specificity=specificity, generality=generality)
    return _harmonic_mean([1 - erased, kept, 1 - synonyms])


def h_c(efficacy: Number, specificity: Number) -> float:
    """Return MACE's H_c for celebrities (arXiv:2403.06135): 2 / ((1 - Acc_e)^-1 + Acc_s^-1).

    Args:
        efficacy: Acc_e, the detector's accuracy on the erased people, in [0, 1]; low is good.
        specificity: Acc_s, its accuracy on the others, in [0, 1]; high is good.

    Returns:
        In [0, 1], higher is better.

    Raises:
        InputError: An accuracy is not a fraction.
    """
    erased, kept = _fractions("h_c", efficacy=efficacy, specificity=specificity)
    return _harmonic_mean([1 - erased, kept])


def h_a(specificity: Score, efficacy: Score) -> float:
    """Return MACE's H_a for artists (arXiv:2403.06135): CLIP_s - CLIP_e.

    Args:
        specificity: CLIP_s, CLIP score on the artists that stay.
        efficacy: CLIP_e, CLIP score on the erased artists.

    Returns:
        In the scores' own unit, higher is better. It has no bounds and no fixed zero: a model that ignores every
        artist has about 0.

    Raises:
        InputError: The scores differ in unit (such as a cosine and 100 x a cosine) or in protocol.
    """
    if specificity.unit != efficacy.unit or specificity.setup != efficacy.setup:
        raise InputError(
            f"h_a: expected two scores of one unit and protocol, got {specificity.unit!r} and {efficacy.unit!r},"
            f" {specificity.setup!r} and {efficacy.setup!r}. Measure both alike."
        )
    return specificity.value - efficacy.value


@dataclass(frozen=True, kw_only=True)
class UnlearnCanvas:
    """UnlearnCanvas's three accuracies (Zhang et al., NeurIPS 2024, arXiv:2402.11846).

    Attributes:
        ua: Unlearning accuracy: share of images for prompts of the target that are not classified as it.
        ira: In-domain retain accuracy: share of images for prompts of the target's siblings (the other styles, or the
            other objects) that are classified as asked for.
        cra: Cross-domain retain accuracy: share classified as asked for in the other domain (objects when a style was
            erased, styles when an object was).
    """

    ua: Rate
    ira: Rate
    cra: Rate

    @classmethod
    def of(
        cls,
        target: Bool[np.ndarray, " target"],
        in_domain: Bool[np.ndarray, " siblings"],
        cross_domain: Bool[np.ndarray, " other"],
    ) -> "UnlearnCanvas":
        """Return the accuracies from the classifier's decisions, one an image.

        Args:
            target: Decisions for prompts of the target, in its domain; True is a failure to unlearn.
            in_domain: Decisions for prompts of its siblings, in the same domain.
            cross_domain: Decisions in the other domain.

        Raises:
            ValueError: A group has no images.
        """
        return cls(ua=Rate.of(~target), ira=Rate.of(in_domain), cra=Rate.of(cross_domain))


def unlearning_accuracy(accuracies: Sequence[Number]) -> float:
    """Return UA_n = 1 - mean_{j <= n} acc_n(c_j), DUGE's forgetting of all targets so far (cf. arXiv:2503.13769).

    A fall below the value at the step of removal shows a target that comes back. The public port pools the images of
    all concepts instead, which differs where concepts have unequal numbers of images.

    Args:
        accuracies: Accuracy on each of the targets removed so far, after step n, in [0, 1].

    Raises:
        InputError: There are none, or one is not a fraction.
    """
    return 1 - _mean("unlearning_accuracy", accuracies)


def retention_accuracy(accuracies: Sequence[Number]) -> float:
    """Return RA_n = mean_{x in R} acc_n(x), over concepts that are never erased (cf. arXiv:2503.13769).

    Args:
        accuracies: Accuracy on each of them after step n, in [0, 1]; near and far concepts in separate calls.

    Raises:
        InputError: There are none, or one is not a fraction.
    """
    return _mean("retention_accuracy", accuracies)


def generalization_erosion(original: Sequence[Number], accuracies: Sequence[Number]) -> float:
    """Return GE_n = mean_{x in R} max(0, acc_0(x) - acc_n(x)), DUGE's erosion (cf. arXiv:2503.13769).

    A gain on one concept does not offset a loss on another.

    Args:
        original: acc_0, accuracy on each concept that is never erased, of the original model, in [0, 1].
        accuracies: acc_n, the same after step n, in the same order.

    Raises:
        InputError: There are none, the lengths differ, or one is not a fraction.
    """
    if len(original) != len(accuracies):
        raise InputError(
            f"generalization_erosion: expected accuracies on the same concepts, got {len(original)} and"
            f" {len(accuracies)}."
        )
    pairs = [
        _fractions("generalization_erosion", original=before, after=after)
        for before, after in zip(original, accuracies, strict=True)
    ]
    return _mean("generalization_erosion", [max(0.0, before - after) for before, after in pairs])


def erosion_slope(erosions: Sequence[Number], steps: Sequence[int] | None = None) -> float:
    """Return the least-squares slope of GE_n over the step n, per step; 0 for a model that does not change.

    Args:
        erosions: GE of some steps, in [0, 1]; GE_0 = 0 of the original may be the first.
        steps: Step n of each erosion; default: consecutive steps.

    Raises:
        InputError: There are fewer than two different steps, or an erosion is not a fraction.
    """
    heights = [_fractions("erosion_slope", erosion=value)[0] for value in erosions]
    places = range(len(heights)) if steps is None else steps
    if len(places) != len(heights) or len(set(places)) < 2:
        raise InputError(
            f"erosion_slope: expected at least two steps, one an erosion, got {len(heights)} erosions at"
            f" {list(places)}. Report GE alone."
        )
    return least_squares_slope(heights, places)


def least_squares_slope(values: Sequence[Number], steps: Sequence[int]) -> float:
    """Return the least-squares slope of some values over at least two different steps, per step."""
    places = np.array(steps) - np.mean(steps)
    return float(places @ np.array(values, dtype=np.float64) / (places @ places))


def backward_transfer(first: Sequence[Number], last: Sequence[Number]) -> float | None:
    """Return BWT = mean_{j < n} (UA_n(c_j) - UA_j(c_j)) over earlier removals (after CUBER, arXiv:2211.00789).

    Below 0 is resurgence: a later removal brings earlier targets back.

    Args:
        first: UA_j(c_j), share of images without the j-th target right after its own removal, in [0, 1].
        last: UA_n(c_j), the same after the n-th removal, in the same order.

    Returns:
        None where there is no earlier removal.

    Raises:
        InputError: The lengths differ, or a share is not a fraction.
    """
    if len(first) != len(last):
        raise InputError(f"backward_transfer: expected shares of the same targets, got {len(first)} and {len(last)}.")
    pairs = [_fractions("backward_transfer", first=one, last=other) for one, other in zip(first, last, strict=True)]
    return float(np.mean([other - one for one, other in pairs])) if pairs else None


def forgotten_per_removed(
    kept_before: Sequence[Number],
    kept_after: Sequence[Number],
    removed_before: Sequence[Number],
    removed_after: Sequence[Number],
) -> float | None:
    """Return the accuracy that kept concepts lost for each point of the targets that was removed (arXiv:2110.03215).

        FUAR = sum_kept max(0, acc_0 - acc_n) / sum_targets max(0, UA_n - UA_0)

    Losses of few images are noisy, and gains do not offset them: with n images a concept the sum is at least as large
    as chance makes it.

    Args:
        kept_before: acc_0, accuracy on each kept concept of the original, in [0, 1].
        kept_after: acc_n, the same after the removals, in the same order.
        removed_before: UA_0, share of images without each target of the original, in [0, 1].
        removed_after: UA_n, the same after the removals.

    Returns:
        None where nothing was removed.

    Raises:
        InputError: The lengths differ, or a value is not a fraction.
    """
    for name, before, after in (("kept", kept_before, kept_after), ("removed", removed_before, removed_after)):
        if len(before) != len(after):
            raise InputError(
                f"forgotten_per_removed.{name}: expected values of the same concepts, got {len(before)} and"
                f" {len(after)}."
            )
    lost = sum(_gain(after, before) for before, after in zip(kept_before, kept_after, strict=True))
    removed = sum(_gain(before, after) for before, after in zip(removed_before, removed_after, strict=True))
    return lost / removed if removed > 0 else None


def _gain(before: Number, after: Number) -> float:
    first, second = _fractions("forgotten_per_removed", before=before, after=after)
    return max(0.0, second - first)


@dataclass(frozen=True, kw_only=True)
class DecrementalStep:
    """DUGE's measures after one of several removals.

    Attributes:
        step: n, from 1.
        ua: UA_n, over the targets up to this one.
        ra_near: RA_n over concepts close to the targets; None if none was measured.
        ra_far: RA_n over the others; None if none was measured.
        ge: GE_n over both.
    """

    step: int
    ua: float
    ra_near: float | None
    ra_far: float | None
    ge: float


def decremental(
    original: Mapping[str, Number],
    steps: Sequence[Mapping[str, Number]],
    *,
    targets: Sequence[str],
    near: Sequence[str] = (),
    far: Sequence[str] = (),
) -> list[DecrementalStep]:
    """Return DUGE's measures after each of a sequence of removals.

    Args:
        original: Accuracy by concept of the original model, in [0, 1].
        steps: The same after each removal, in order.
        targets: The concept removed at each step.
        near: Concepts never erased that are close to the targets.
        far: Other concepts never erased.

    Raises:
        InputError: The targets are not one a step, a kept concept is a target, there are no kept concepts, a concept
            has no accuracy, or an accuracy is not a fraction.
    """
    kept = [*near, *far]
    if len(steps) != len(targets) or not targets:
        raise InputError(f"decremental: expected one target a step, got {len(targets)} for {len(steps)} steps.")
    if erased := sorted(set(kept) & set(targets)):
        raise InputError(f"decremental: expected kept concepts that are never erased, got {erased[0]!r}.")
    if not kept:
        raise InputError("decremental: expected kept concepts, got none. UA without retention says nothing.")
    for step, accuracies in enumerate([original, *steps]):
        if missing := [name for name in (*kept, *targets[:step]) if name not in accuracies]:
            raise InputError(f"decremental: expected an accuracy on {missing[0]!r} after step {step}, got none.")
    return [
        DecrementalStep(
            step=step,
            ua=unlearning_accuracy([accuracies[name] for name in targets[:step]]),
            ra_near=retention_accuracy([accuracies[name] for name in near]) if near else None,
            ra_far=retention_accuracy([accuracies[name] for name in far]) if far else None,
            ge=generalization_erosion([original[name] for name in kept], [accuracies[name] for name in kept]),
        )
        for step, accuracies in enumerate(steps, 1)
    ]


def joint_rate(absent: Bool[np.ndarray, " absent"], present: Bool[np.ndarray, " present"]) -> Rate:
    """Return the share of images in which the target is absent and the rest of the prompt is present.

    A model that draws nothing has 0, and so has a model that draws everything.

    Args:
        absent: Decisions that the target is absent, one an image.
        present: Decisions that the rest of the prompt is present, in the same order.

    Raises:
        InputError: The lengths differ.
        ValueError: There are no images.
    """
    if len(absent) != len(present):
        raise InputError(f"joint_rate: expected claims on the same images, got {len(absent)} and {len(present)}.")
    return Rate.of(absent & present)


def relative_retention(original: Number, after: Number) -> float:
    """Return acc_n / acc_0: the accuracy on kept concepts as a multiple of the original model's.

    The value exceeds 1 where the edit improves the accuracy. On equal prompts and seeds prefer `scores.kept_rate`.

    Args:
        original: acc_0, in (0, 1].
        after: acc_n, in [0, 1].

    Raises:
        InputError: An accuracy is not a fraction, or the original's is 0.
    """
    before, now = _fractions("relative_retention", original=original, after=after)
    if before == 0:
        raise InputError(
            "relative_retention: expected an original that shows the concept at all, got 0. Leave the concept out."
        )
    return now / before


def _harmonic_mean(values: Sequence[float]) -> float:
    return len(values) / sum(1 / value for value in values) if all(value > 0 for value in values) else 0.0


def _mean(where: str, accuracies: Sequence[Number]) -> float:
    if not accuracies:
        raise InputError(f"{where}: expected at least one accuracy, got none. Leave the measure out.")
    return float(np.mean([_fractions(where, accuracy=value)[0] for value in accuracies]))


def _fractions(where: str, **values: Number) -> list[float]:
    for name, value in values.items():
        if not 0 <= value <= 1:
            hint = " Divide percentages by 100." if 1 < value <= 100 else ""
            raise InputError(f"{where}.{name}: expected a fraction in [0, 1], got {value!r}.{hint}")
    return [float(value) for value in values.values()]
