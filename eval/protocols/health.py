"""Health of a model after each entry of a ledger: abilities beside the original's, and the course over the entries.

After arXiv:2510.13928 (effect sizes by ability, and skipped parts as the main lesion), arXiv:2211.00789 (backward
transfer) and arXiv:2110.03215 (forgotten for acquired); as measures of erasure they are ours.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image
from typing_extensions import TypedDict

from erasure.arguments import checks_arguments
from erasure.concept import Concept
from erasure.judge import Judge
from erasure.profile import ModelProfile
from erasure.prompts import fill, speaks_of

from ..stats.aggregates import backward_transfer, forgotten_per_removed, least_squares_slope
from ..stats.allocation import noise_seed
from ..stats.effects import Effect, hedges_g
from ..stats.scores import Rate
from .plans import PlannedImage

PAIRS, EMPTY = 8, 8
"""Images of two things together, and of the empty prompt; the others are the measure's own."""
ALARM = -0.3
"""Effect below which an ability counts as damaged, if the interval is below 0 as well."""
WHOLE, TOGETHER, EMPTY_PROMPT = "everything asked for", "no part dropped", "empty prompt"


class _Share(TypedDict):
    value: float


class _EffectRecord(TypedDict):
    value: float
    interval: tuple[float, float]


class AbilityRecord(TypedDict):
    """Keys of a stored ability that tables show."""

    before: _Share
    after: _Share
    effect: _EffectRecord
    damaged: bool


class HealthRecord(TypedDict):
    """Keys of a stored health check."""

    abilities: Mapping[str, AbilityRecord]
    images: int


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """One image whose parts are looked for.

    Attributes:
        prompt: Prompt, which names no removed concept.
        seed: Seed of the noise, >= 0.
        parts: Kept concepts that the prompt names; none for the empty prompt, which shows any.
    """

    prompt: str
    seed: int
    parts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Shares of a group of images that show what they should, before and after.

    Attributes:
        before: Share in the original.
        after: Share in the edited model.
        effect: Hedges' g of the two; the intervals of all abilities hold together in 95 % of draws.
    """

    before: Rate
    after: Rate
    effect: Effect

    @property
    def damaged(self) -> bool:
        """True if the edited model draws clearly less of it."""
        return self.effect.value < ALARM and self.effect.high < 0

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "effect": self.effect.as_json(),
            "damaged": self.damaged,
        }


@checks_arguments
def checks_of(profile: ModelProfile, removed: Sequence[Concept], planned: Sequence[PlannedImage]) -> list[HealthCheck]:
    """Return the images of a health check: those of a measure that ask for kept concepts, then pairs and empty prompts.

    Pairs and empty prompts need a model whose concepts are known. A pair stays the same from entry to entry, unless
    one of its two is removed.

    Args:
        profile: Profile of the model.
        removed: Concepts that stand removed.
        planned: Images of the measure.
    """
    targets = [concept.target for concept in removed]
    known = [Concept(target=name, aliases=profile.aliases(name)) for name in profile.kept_beside(targets)]
    checks = []
    for image in planned:
        if image.role != "removed":
            named = [each.target for each in known if each.target != image.name and speaks_of(image.prompt, [each])]
            checks.append(HealthCheck(prompt=image.prompt, seed=image.seed, parts=(image.name, *named)))
    things = [name for name in profile.concepts if profile.ability(name) == "object"]
    random.Random("health").shuffle(things)
    couples = [(one, other) for gap in (1, 2) for one, other in zip(things, things[gap:], strict=False)]
    for one, other in [pair for pair in couples if not set(pair) - set(profile.kept_beside(targets))][:PAIRS]:
        prompt = f"{fill('a {}', one)} and {fill('a {}', other)}"
        checks.append(HealthCheck(prompt=prompt, seed=noise_seed(prompt, 0, 0), parts=(one, other)))
    if profile.concepts:
        checks += [HealthCheck(prompt="", seed=noise_seed("", i, 0), parts=()) for i in range(EMPTY)]
    return checks


@checks_arguments
def health(
    checks: Sequence[HealthCheck],
    profile: ModelProfile,
    judge: Judge,
    before: Sequence[Image],
    after: Sequence[Image],
) -> dict[str, Any]:
    """Return the abilities of an edited model beside the original's, as plain data.

    Abilities are the parts that prompts name, by group; whole prompts; prompts of several parts of which not some are
    shown and others are not; and the empty prompt, which shows any known concept.

    Args:
        checks: The images.
        profile: Profile of the model.
        judge: Judge of the images.
        before: Images of the original, one a check.
        after: Images of the edited model, likewise.
    """
    sides = [_decisions(checks, profile, judge, images) for images in (before, after)]
    groups = {name: values for name, values in sides[0].items() if values}
    confidence = 1 - 0.05 / max(1, len(groups))
    abilities = {}
    for name in groups:
        first, second = (Rate.of(np.array(side[name])) for side in sides)
        abilities[name] = Ability(before=first, after=second, effect=hedges_g(first, second, confidence=confidence))
    return {"abilities": {name: each.as_json() for name, each in abilities.items()}, "images": len(checks)}


def _decisions(
    checks: Sequence[HealthCheck], profile: ModelProfile, judge: Judge, images: Sequence[Image]
) -> dict[str, list[bool]]:
    """Return the decisions on one model's images by ability."""
    parts = {part for check in checks for part in check.parts}
    names = parts | (set(profile.concepts) if any(not check.parts for check in checks) else set())
    seen = {name: judge.shows(images, name) for name in sorted(names)}
    groups: dict[str, list[bool]] = {
        name: [] for name in (WHOLE, *_groups(parts, profile), "pair", TOGETHER, EMPTY_PROMPT)
    }
    for i, check in enumerate(checks):
        shown = [seen[part][i] for part in check.parts]
        if not check.parts:
            groups[EMPTY_PROMPT].append(any(decisions[i] for decisions in seen.values()))
            continue
        groups[WHOLE].append(all(shown))
        for part, decision in zip(check.parts, shown, strict=True):
            groups[profile.ability(part)].append(decision)
        if len(check.parts) > 1:
            groups[TOGETHER].append(all(shown) or not any(shown))
            if all(profile.ability(part) == "object" for part in check.parts):
                groups["pair"].append(all(shown))
    return groups


def damages(record: Mapping[str, Any]) -> list[str]:
    """Return a line for each ability of a stored health check that is damaged."""
    return [
        f"{name}: {each['after']['value']:.2f}, was {each['before']['value']:.2f}"
        f" (g {each['effect']['value']:.2f} [{each['effect']['interval'][0]:.2f}, {each['effect']['interval'][1]:.2f}])"
        for name, each in record["abilities"].items()
        if each["damaged"]
    ]


@dataclass(frozen=True, kw_only=True)
class Course:
    """Measures over the standing entries of a ledger, from what was stored after each.

    Attributes:
        backward_transfer: Mean change of the efficacy on earlier targets since their own removal; below 0 they come
            back. None with fewer than two measured entries.
        standard_error: Its standard error.
        returned: Earlier target that lost most efficacy, and the change; None without one.
        forgotten_per_removed: Points of kept concepts lost for each point of the targets removed; None if nothing is.
        slope: Change of the effect on whole prompts an entry; None with fewer than two checks.
    """

    backward_transfer: float | None = None
    standard_error: float | None = None
    returned: tuple[str, float] | None = None
    forgotten_per_removed: float | None = None
    slope: float | None = None

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any] | None]) -> "Course":
        """Return the course over the stored measures after the entries, in their order; None where there is none."""
        measured = [record for record in records if record is not None]
        if not measured:
            return cls()
        last = measured[-1]
        first: dict[str, Mapping[str, Any]] = {}
        for record in measured[:-1]:
            for name, rates in record["removed"].items():
                first.setdefault(name, rates["efficacy"])
        first = {name: rate for name, rate in first.items() if name in last["removed"]}
        now = {name: rates["efficacy"] for name, rates in last["removed"].items()}
        changes = {name: now[name]["value"] - rate["value"] for name, rate in first.items()}
        transfer = backward_transfer([rate["value"] for rate in first.values()], [now[n]["value"] for n in first])
        kept = [rate for group in last["kept"].values() for rate in group.get("accuracy", {}).values()]
        checks = [(i, record["health"]) for i, record in enumerate(records, 1) if record and record.get("health")]
        effects = [check["abilities"][WHOLE]["effect"]["value"] for _, check in checks if WHOLE in check["abilities"]]
        return cls(
            backward_transfer=transfer,
            standard_error=_error_of_mean([*first.values()], [now[name] for name in first]),
            returned=min(changes.items(), key=lambda item: item[1], default=None),
            forgotten_per_removed=forgotten_per_removed(
                [rates["before"] for rates in kept],
                [rates["after"] for rates in kept],
                [rates["before"]["value"] for rates in last["removed"].values()],
                [rate["value"] for rate in now.values()],
            ),
            slope=least_squares_slope([0.0, *effects], [0, *(i for i, _ in checks)]) if effects else None,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {**vars(self), "returned": self.returned and list(self.returned)}

    @property
    def line(self) -> str:
        """One line of what is known; "" for nothing."""
        parts = []
        if self.backward_transfer is not None and self.returned is not None:
            name, change = self.returned
            parts.append(
                f"backward transfer {self.backward_transfer:+.3f} ± {self.standard_error or 0:.3f}"
                f" (least: {name} {change:+.2f})"
            )
        if self.forgotten_per_removed is not None:
            parts.append(f"forgotten per removed {self.forgotten_per_removed:.2f}")
        if self.slope is not None:
            parts.append(f"health {self.slope:+.3f} an entry")
        return ", ".join(parts)


def _error_of_mean(first: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the standard error of the mean change of some rates, taken as independent; None without any."""
    if not first:
        return None
    shares = [((rate["value"] * rate["n"] + 0.5) / (rate["n"] + 1), rate["n"]) for rate in (*first, *last)]
    return sum(share * (1 - share) / n for share, n in shares) ** 0.5 / len(first)


def _groups(parts: set[str], profile: ModelProfile) -> list[str]:
    return sorted({profile.ability(part) for part in parts})
