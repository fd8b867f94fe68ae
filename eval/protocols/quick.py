"""The quick measure: after a removal, is the target gone and is the rest still there?

It compares pictures of the edited model with pictures of the original for the same prompts and seeds, as a judge reads
them: the oracle on the tiny world, CLIP elsewhere.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from PIL.Image import Image

from erasure.concept import Concept, Kind, fill, normalized, templates
from erasure.runs.run import MeasureSettings
from erasure.tinyworld import vocabulary

from ..stats.scores import Rate, Score, cosine_distances, kept_rate

Role = Literal["removed", "near", "far"]
Anything = TypeVar("Anything")


@runtime_checkable
class Reading(Protocol):
    """What a judge sees in n pictures."""

    @property
    def features(self) -> Float[np.ndarray, "n dim"]:
        """A description of each picture, for distances."""
        ...

    def sees(self, name: str) -> Bool[np.ndarray, " n"]:
        """Say of each picture whether it shows the named concept."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Who reads the pictures."""

    def read(self, images: Sequence[Image], /) -> Reading:
        """Look at the pictures."""
        ...


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One picture to be made by both models, and the question put to the judge.

    Attributes:
        name: The concept asked for.
        role: What became of it: removed, or kept and near to something removed, or kept and far.
        prompt: It names the concept, and no removed one unless it is one.
        seed: Of the noise.
    """

    name: str
    role: Role
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Gone:
    """What is left of one removed concept.

    Attributes:
        efficacy: Share of pictures, for prompts that ask for it, in which the judge does not see it.
        before: The same share of the original model, which is what efficacy starts from.
    """

    efficacy: Rate
    before: Rate


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is left of a group of concepts that should stay.

    Attributes:
        retention: Of the pictures in which the original shows what was asked for, the share in which the edited model
            still does (same prompts and seeds); None if the original never does.
        after: Plain share of pictures that show what was asked for, of the edited model.
        before: The same of the original model.
        distance: From each picture to the original's, in the judge's features.
        names: The concepts asked for, each with its retention.
    """

    retention: Rate | None
    after: Rate
    before: Rate
    distance: Score
    names: Mapping[str, Rate | None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The quick measure of one state of a model.

    Attributes:
        removed: Each removed concept.
        near: The concepts most like them, None if there are none or none was asked for.
        far: Everything else, likewise.
        judge: Who read the pictures.
        left_out: Concepts that were not asked for, with the reason.
    """

    removed: Mapping[str, Gone]
    near: Kept | None
    far: Kept | None
    judge: str
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """The removed concept of which most is left."""
        return min(self.removed, key=lambda name: self.removed[name].efficacy.value)

    @property
    def efficacy(self) -> Rate:
        """The lowest efficacy over all that was removed so far."""
        return self.removed[self.worst].efficacy

    def as_json(self) -> dict[str, Any]:
        """Give the measure as plain data: the headline numbers as numbers, their counts and intervals beside them."""
        groups = {"near": self.near, "far": self.far}
        return {
            "efficacy": self.efficacy.value,
            "retention": {
                role: None if kept is None or kept.retention is None else kept.retention.value
                for role, kept in groups.items()
            },
            "n": {
                "efficacy": self.efficacy.n,
                **{
                    role: 0 if kept is None or kept.retention is None else kept.retention.n
                    for role, kept in groups.items()
                },
            },
            "interval": {
                "efficacy": list(self.efficacy.interval),
                **{
                    role: None if kept is None or kept.retention is None else list(kept.retention.interval)
                    for role, kept in groups.items()
                },
            },
            "worst": self.worst,
            "removed": {
                name: {"efficacy": gone.efficacy.as_json(), "before": gone.before.as_json()}
                for name, gone in self.removed.items()
            },
            "kept": {
                role: {
                    "retention": kept.retention and kept.retention.as_json(),
                    "after": kept.after.as_json(),
                    "before": kept.before.as_json(),
                    "distance": kept.distance.as_json(),
                    "names": {name: rate and rate.as_json() for name, rate in kept.names.items()},
                }
                for role, kept in groups.items()
                if kept is not None
            },
            "judge": self.judge,
            "left_out": dict(self.left_out),
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The pictures of a measure.

    Attributes:
        probes: What to ask for.
        left_out: Concepts that are not asked for, with the reason.
    """

    probes: tuple[Probe, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """The prompt and seed of each probe."""
        return pairs_of(self.probes)

    def measure(self, judge: Judge, judged_by: str, before: Sequence[Image], after: Sequence[Image]) -> Measured:
        """Compare the pictures of two models.

        Args:
            judge: Who reads them.
            judged_by: The judge, in words.
            before: The original's picture of each probe, in order.
            after: The edited model's.
        """
        return measure(self.probes, judge.read(before), judge.read(after), judged_by, self.left_out)


def measure(
    probes: Sequence[Probe], before: Reading, after: Reading, judged_by: str, left_out: Mapping[str, str] | None = None
) -> Measured:
    """Turn two readings of the same probes into rates and distances."""
    names = np.array([probe.name for probe in probes])
    roles = np.array([probe.role for probe in probes])
    seen_before, seen_after = (_seen(probes, reading) for reading in (before, after))
    distances = cosine_distances(before.features, after.features)

    def kept(role: Role) -> Kept | None:
        here = roles == role
        if not here.any():
            return None
        return Kept(
            retention=kept_rate(seen_before[here], seen_after[here]),
            after=Rate.of(seen_after[here]),
            before=Rate.of(seen_before[here]),
            distance=Score.mean(distances[here], unit="cosine distance", higher_is_better=False),
            names={
                name: kept_rate(seen_before[here & (names == name)], seen_after[here & (names == name)])
                for name in dict.fromkeys(names[here].tolist())
            },
        )

    gone = {
        name: Gone(
            efficacy=Rate.of(~seen_after[(roles == "removed") & (names == name)]),
            before=Rate.of(~seen_before[(roles == "removed") & (names == name)]),
        )
        for name in dict.fromkeys(names[roles == "removed"].tolist())
    }
    return Measured(removed=gone, near=kept("near"), far=kept("far"), judge=judged_by, left_out=dict(left_out or {}))


def plan_tinyworld(removed: Sequence[str], settings: MeasureSettings) -> Plan:
    """Plan the measure on the tiny world, where every concept is known and the oracle says what a picture shows.

    Near are the removed concepts' siblings, far is everything else the world knows. A named individual whose class was
    removed is neither: a picture of it shows the class.
    """
    gone = set(removed)
    orphans = {
        name: f"a {vocabulary.INDIVIDUALS[name]}, which was removed"
        for name in vocabulary.TAUGHT_INDIVIDUALS
        if name not in gone and vocabulary.INDIVIDUALS[name] in gone
    }
    kept = [name for name in vocabulary.concepts() if name not in gone and name not in orphans]
    siblings = {sibling for name in removed for sibling in vocabulary.siblings(name)}
    near = [name for name in kept if name in siblings]
    far = [name for name in kept if name not in siblings]
    forbidden = [word for name in removed for word in (name, *vocabulary.SYNONYMS.get(name, ()))]
    probes = [
        *(
            probe
            for name in dict.fromkeys(removed)
            for probe in tinyworld_probes(name, "removed", settings.per_concept, settings, ())
        ),
        *_spread(near, "near", settings.near, settings, forbidden),
        *_spread(far, "far", settings.far, settings, forbidden),
    ]
    return Plan(probes=tuple(probes), left_out=orphans)


def plan_named(removed: Sequence[Concept], settings: MeasureSettings) -> Plan:
    """Plan the measure of a model of which nothing is known but the concepts of its ledger.

    Near is what the removals were told to preserve; there is no far.
    """
    gone = {normalized(name) for concept in removed for name in concept.names}
    preserved: dict[str, Kind] = {
        name: concept.kind for concept in removed for name in concept.preserve if normalized(name) not in gone
    }
    probes = [
        Probe(name=concept.target, role="removed", prompt=prompt, seed=noise_seed(concept.target, i, settings.seed))
        for concept in removed
        for i, prompt in enumerate(_cycle(concept.target, concept, settings.per_concept))
    ]
    for position, (name, kind) in enumerate(preserved.items()):
        count = share(settings.near, len(preserved), position)
        sentences = templates(kind)
        probes += [
            Probe(
                name=name,
                role="near",
                prompt=fill(sentences[i % len(sentences)], name),
                seed=noise_seed(name, i, settings.seed),
            )
            for i in range(count)
        ]
    return Plan(probes=tuple(probes))


@dataclass(frozen=True, kw_only=True)
class ClipJudge:
    """CLIP as a zero-shot classifier between the concepts of a ledger and a picture of nothing in particular.

    Attributes:
        model: A transformers CLIPModel.
        processor: Its processor.
        names: The concepts to tell apart.
    """

    model: Any
    processor: Any
    names: tuple[str, ...]

    def read(self, images: Sequence[Image], /) -> "ClipReading":
        """Look at the pictures, 16 at a time."""
        import torch

        texts = [f"a picture of {name}" for name in self.names] + ["a picture"]
        shares, features = [], []
        with torch.inference_mode():
            for start in range(0, len(images), 16):
                batch = self.processor(
                    text=texts,
                    images=list(images[start : start + 16]),
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                )
                output = self.model(**batch.to(self.model.device))
                shares.append(output.logits_per_image.float().softmax(dim=1).cpu().numpy())
                features.append(output.image_embeds.float().cpu().numpy())
        return ClipReading(names=self.names, shares=np.concatenate(shares), features=np.concatenate(features))


@dataclass(frozen=True, kw_only=True)
class ClipReading:
    """What CLIP sees.

    Attributes:
        names: The concepts that it chose between.
        shares: Of each picture the probability of each text; the last is "a picture".
        features: Image embeddings.
    """

    names: tuple[str, ...]
    shares: Float[np.ndarray, "n texts"]
    features: Float[np.ndarray, "n dim"]

    def sees(self, name: str) -> Bool[np.ndarray, " n"]:
        """Say of each picture whether the concept is its best description."""
        return self.shares.argmax(axis=1) == self.names.index(name)


CLIP_WEIGHTS = ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32")


def find_clip() -> str | None:
    """Return a CLIP model whose weights are in the local Hub cache, the largest first; None without one."""
    return next((name for name in CLIP_WEIGHTS if cached(name)), None)


def cached(name: str) -> bool:
    """Whether a model's weights are in the local Hub cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "model.safetensors"), str)


def load_clip(source: str | Path, device: str) -> tuple[Any, Any]:
    """Load a CLIP model and its processor from the local cache or a folder; nothing is downloaded."""
    from transformers import CLIPModel, CLIPProcessor

    model: Any = CLIPModel.from_pretrained(source, local_files_only=True)
    return model.to(device).eval(), CLIPProcessor.from_pretrained(source, local_files_only=True)


def pairs_of(probes: Sequence[Probe]) -> list[tuple[str, int]]:
    """Return the prompt and seed of each probe."""
    return [(probe.prompt, probe.seed) for probe in probes]


def _seen(probes: Sequence[Probe], reading: Reading) -> Bool[np.ndarray, " n"]:
    """Return whether each probe's own concept is seen in its picture."""
    seen: Mapping[str, np.ndarray] = {name: reading.sees(name) for name in {probe.name for probe in probes}}
    return np.array([seen[probe.name][i] for i, probe in enumerate(probes)], dtype=bool)


def _spread(
    names: Sequence[str], role: Role, total: int, settings: MeasureSettings, forbidden: Sequence[str]
) -> list[Probe]:
    """Share a number of pictures out among concepts, evenly to within one."""
    return [
        probe
        for position, name in enumerate(names)
        for probe in tinyworld_probes(name, role, share(total, len(names), position), settings, forbidden)
    ]


def tinyworld_probes(name: str, role: Role, n: int, settings: MeasureSettings, forbidden: Sequence[str]) -> list[Probe]:
    """Return the first n prompts of a concept that name nothing forbidden; the same ones whatever else is measured."""
    drawn, probes = 2 * n + 8, []
    for i, prompt in enumerate(vocabulary.prompts_for(name, drawn, settings.seed)):
        words = f" {normalized(prompt)} "
        if len(probes) < n and not any(f" {normalized(word)} " in words for word in forbidden):
            probes.append(Probe(name=name, role=role, prompt=prompt, seed=noise_seed(name, i, settings.seed)))
    return probes


def share(total: int, parts: int, position: int) -> int:
    """Return how many of a total one of several parts gets; the parts add up to it and differ by one at most."""
    # Whoever gets one more is spread over the list, so that small totals do not all fall on its head.
    return total * (position + 1) // parts - total * position // parts


def evenly(items: Sequence[Anything], n: int) -> list[Anything]:
    """Return n of some items from all over their order, or all if there are no more."""
    return [items[at * len(items) // n] for at in range(n)] if len(items) > n else list(items)


def noise_seed(name: str, index: int, seed: int) -> int:
    """Return a noise seed of its own for each picture of a name, the same on every machine."""
    return zlib.crc32(f"{name}:{index}:{seed}".encode()) % 2**31


def _cycle(name: str, concept: Concept, n: int) -> list[str]:
    sentences = templates(concept.kind)
    return [fill(sentences[i % len(sentences)], name) for i in range(n)]
