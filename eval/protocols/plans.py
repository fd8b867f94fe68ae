"""The images that the quick measure compares: prompts for removed concepts, and for those that should stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from erasure.arguments import checks_arguments
from erasure.concept import Concept, Kind, normalized, normalized_names
from erasure.profile import ModelProfile
from erasure.prompts import fill, has_context
from erasure.runs.schema import MeasureSettings

from ..stats.allocation import noise_seed, share
from .phrasings import held_out_sentences

Role = Literal["removed", "near", "far"]


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """One image to be made by both models, and the question put to the judge.

    Attributes:
        name: The concept asked for.
        role: Role of the concept: removed, or kept and near to a removed concept, or kept and far.
        prompt: It names the concept, and no removed one unless it is one.
        seed: Seed of the noise, >= 0.
        held_out: Whether the prompt has a context that no list of an eraser may hold.
    """

    name: str
    role: Role
    prompt: str
    seed: int
    held_out: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The images of a measure.

    Attributes:
        probes: Planned images.
        left_out: Concepts that are not asked for, with the reason.
    """

    probes: tuple[PlannedImage, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """The prompt and seed of each probe."""
        return pairs_of(self.probes)


@checks_arguments
def plan_of(profile: ModelProfile, removed: Sequence[Concept], settings: MeasureSettings) -> Plan:
    """Plan the measure of a model: over all of its concepts if they are known, else over those of its removals."""
    if profile.concepts:
        return plan_known(profile, [concept.target for concept in removed], settings)
    return plan_named(removed, settings)


@checks_arguments
def plan_known(profile: ModelProfile, removed: Sequence[str], settings: MeasureSettings) -> Plan:
    """Plan the measure of a model whose concepts are known.

    Near are the removed concepts' siblings, far is everything else the model knows. A named individual whose class was
    removed is neither: an image of it shows the class.
    """
    kept = profile.kept_beside(removed)
    orphans = {
        name: f"a {profile.member_of(name)}, which was removed"
        for name in profile.concepts
        if name not in removed and name not in kept
    }
    siblings = {sibling for name in removed for sibling in profile.siblings(name)}
    near = [name for name in kept if name in siblings]
    far = [name for name in kept if name not in siblings]
    forbidden = [word for name in removed for word in (name, *profile.aliases(name))]
    probes = [
        *(
            probe
            for name in dict.fromkeys(removed)
            for probe in known_images(profile, name, "removed", settings.per_concept, settings, ())
        ),
        *_spread(profile, near, "near", settings.near, settings, forbidden),
        *_spread(profile, far, "far", settings.far, settings, forbidden),
    ]
    return Plan(probes=tuple(probes), left_out=orphans)


@checks_arguments
def plan_named(removed: Sequence[Concept], settings: MeasureSettings) -> Plan:
    """Plan the measure of a model of which nothing is known but the concepts of its ledger.

    Near is what the removals were told to preserve; there is no far.
    """
    removed_names = normalized_names(*removed)
    preserved: dict[str, Kind] = {
        name: concept.kind for concept in removed for name in concept.preserve if normalized(name) not in removed_names
    }
    probes = [
        PlannedImage(
            name=concept.target,
            role="removed",
            prompt=prompt,
            seed=noise_seed(concept.target, i, settings.seed),
            held_out=True,
        )
        for concept in removed
        for i, prompt in enumerate(_cycle(concept.target, concept, settings.per_concept))
    ]
    for position, (name, kind) in enumerate(preserved.items()):
        count = share(settings.near, len(preserved), position)
        sentences = held_out_sentences(kind)
        probes += [
            PlannedImage(
                name=name,
                role="near",
                prompt=fill(sentences[i % len(sentences)], name),
                seed=noise_seed(name, i, settings.seed),
                held_out=True,
            )
            for i in range(count)
        ]
    return Plan(probes=tuple(probes))


def pairs_of(probes: Sequence[PlannedImage]) -> list[tuple[str, int]]:
    """Return the prompt and seed of each probe."""
    return [(probe.prompt, probe.seed) for probe in probes]


def _spread(
    profile: ModelProfile,
    names: Sequence[str],
    role: Role,
    total: int,
    settings: MeasureSettings,
    forbidden: Sequence[str],
) -> list[PlannedImage]:
    """Share a number of images out among concepts, evenly to within one."""
    return [
        probe
        for position, name in enumerate(names)
        for probe in known_images(profile, name, role, share(total, len(names), position), settings, forbidden)
    ]


def known_images(
    profile: ModelProfile, name: str, role: Role, n: int, settings: MeasureSettings, forbidden: Sequence[str]
) -> list[PlannedImage]:
    """Return the first n prompts of a concept that name nothing forbidden; the same ones whatever else is measured."""
    drawn, probes = 2 * n + 8, []
    for i, prompt in enumerate(profile.prompts(name, drawn, settings.seed)):
        words = f" {normalized(prompt)} "
        if len(probes) < n and not any(f" {normalized(word)} " in words for word in forbidden):
            seed = noise_seed(name, i, settings.seed)
            held_out = has_context(prompt, [name, *profile.aliases(name)], profile.held_out)
            probes.append(PlannedImage(name=name, role=role, prompt=prompt, seed=seed, held_out=held_out))
    return probes


def _cycle(name: str, concept: Concept, n: int) -> list[str]:
    sentences = held_out_sentences(concept.kind)
    return [fill(sentences[i % len(sentences)], name) for i in range(n)]
