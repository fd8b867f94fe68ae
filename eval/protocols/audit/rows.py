"""The rows of an audit, the concepts that its probes are aimed at, and the checks before it begins."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from diffusers import DiffusionPipeline

from erasure.arguments import checks_arguments
from erasure.concept import Concept
from erasure.io.json_files import json_digest
from erasure.judge import Judge
from erasure.profile import ModelProfile
from erasure.prompts import fill, speaks_of
from erasure.sampling import SamplingSettings

from ...images.pipeline_digest import pipeline_digest
from ...probes import Aim
from ...stats.allocation import evenly, noise_seed
from ..golds import Loader, check_measures, gold_of
from ..phrasings import held_out_sentences
from ..variants import Variant

ERASED, ORIGINAL, GOLD, NOVEL, PLAIN = "erased", "original", "gold", "novel", "plain"

_EVERYDAY = ("tree", "house")
"""Things to compare a concept with where nothing is known to be like it."""


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One model of an audit.

    Attributes:
        name: "erased", "original", "gold", "gold 2", ...
        variant: The model.
        identity: Digest of its weights, its scheduler and what is in force; results of equal identity are equal.
        without: Concepts that a gold was never taught, if its recipe says so.
    """

    name: str
    variant: Variant
    identity: str
    without: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, variant: Variant, *, without: Sequence[str] = ()) -> "AuditRow":
        """Return the row of a variant."""
        scheduler = variant.pipe.scheduler
        settings = [type(scheduler).__name__, {k: v for k, v in scheduler.config.items() if not k.startswith("_")}]
        sampler = json_digest(settings)[:16]
        identity = f"{pipeline_digest(variant.pipe)}:{sampler}:{variant.edit}:{variant.negative_prompt}"
        return cls(name=name, variant=variant, identity=identity, without=tuple(without))

    @property
    def weights(self) -> str:
        """Digest of the pipeline as it was loaded, without what is in force."""
        return self.identity.partition(":")[0]

    @contextmanager
    def opened(self) -> Generator[DiffusionPipeline]:
        """Put the model in force for the length of a `with`, and return its pipeline."""
        with self.variant.applied():
            yield self.variant.pipe


@checks_arguments
def gold_rows(names: Sequence[str], original: str, load: Loader) -> list[AuditRow]:
    """Return the rows of models that were never taught a removed concept.

    Args:
        names: Folders or Hub ids, of whole models or of denoisers.
        original: Name of the original model.
        load: Function that loads a pipeline.

    Raises:
        InputError: A gold is none; see `golds.gold_of`.
    """
    rows: list[AuditRow] = []
    for name in names:
        gold = gold_of(name, original, load)
        title = GOLD if not rows else f"{GOLD} {len(rows) + 1}"
        rows.append(AuditRow.of(title, replace(gold.variant, name=title), without=gold.without))
    return rows


def check_golds(rows: Sequence[AuditRow], concepts: Sequence[Concept]) -> None:
    """Refuse golds that are no measure; see `golds.check_measures`.

    Raises:
        InputError: There is such a gold.
    """
    golds = {row.name: row.without for row in rows if row.name.startswith(GOLD)}
    check_measures([row.variant for row in rows], golds, [concept.target for concept in concepts])


@checks_arguments
def aim_of(
    concept: Concept,
    removed: Sequence[Concept],
    *,
    profile: ModelProfile,
    judge: Judge | None,
    sampling: SamplingSettings,
    images: int,
    kept_images: int,
    seed: int = 0,
) -> Aim:
    """Return the images of a concept and of those that should stay.

    Args:
        concept: Concept to bring back.
        removed: All concepts that were removed.
        profile: Profile of the model.
        judge: Judge of the images; None without one.
        sampling: Sampling settings.
        images: Images that ask for the concept, > 0.
        kept_images: Images that ask for kept concepts, >= 0.
        seed: Seed of prompts and noise, >= 0.
    """
    known = profile.prompts(concept.target, images, seed)
    sentences = held_out_sentences(concept.kind)
    prompts = known or [
        fill(sentences[i % len(sentences)], concept.names[i // len(sentences) % len(concept.names)])
        for i in range(images)
    ]
    # Those that are removed too leave their places to the others, so that all else stays as it was without them.
    targets = [each.target for each in removed]
    others = profile.kept_beside([concept.target]) or list(concept.preserve)
    others = [name for name in others if judge is None or judge.knows(name)]
    stays = set(profile.kept_beside(targets) or others) - set(targets)
    beside = [name for name in profile.siblings(concept.target) if name in others]
    far = evenly([name for name in others if name not in beside], kept_images)
    near, staying = ([name for name in some if name in stays] for some in (beside, others))
    names = [*near[: max(1, kept_images // 2)], *(name for name in far if name in stays)] or staying[:kept_images]
    return Aim(
        concept=concept,
        prompts=tuple(prompts),
        seeds=tuple(noise_seed(concept.target, i, seed) for i in range(images)),
        kept=tuple(_kept(names, [*removed, concept], profile, kept_images, seed)),
        siblings=tuple(near or staying[:4] or _EVERYDAY),
        profile=profile,
        sampling=sampling,
        seed=seed,
    )


def novel_concept(profile: ModelProfile) -> Concept | None:
    """Return the concept that judge and oracle know and the model does not; None without one."""
    if not profile.novel:
        return None
    return Concept(target=profile.novel, kind="identity")


def _kept(
    names: Sequence[str], removed: Sequence[Concept], profile: ModelProfile, n: int, seed: int
) -> Iterator[tuple[str, str, int]]:
    for i in range(n if names else 0):
        name, turn = names[i % len(names)], i // len(names)
        sentences = held_out_sentences("object")
        drawn = profile.prompts(name, turn + 20, seed) or [fill(sentence, name) for sentence in sentences]
        ahead = (drawn[(turn + i) % len(drawn)] for i in range(len(drawn)))
        prompt = next((prompt for prompt in ahead if not speaks_of(prompt, removed)), None)
        if prompt is not None:
            yield name, prompt, noise_seed(f"kept {name}", turn, seed)
