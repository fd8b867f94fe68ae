"""Does a model know an instance, can it compose it, and did the class survive? The measure of personalisation.

Pictures of the model before and after are made for the same prompts and seeds. On the tiny world its oracle says what
is to be seen; elsewhere it is whatever of CLIP, DINO and BLIP has its weights in the local cache.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from erasure.concept import fill
from erasure.errors import ErasureError
from erasure.personalize.augmentation import squared
from erasure.tinyworld import vocabulary
from erasure.tinyworld.data import THINGS
from erasure.tinyworld.judge import Judge as TextJudge
from erasure.tinyworld.oracle import Oracle, Reading
from erasure.tinyworld.world import SIZE, compose, draw

from ..features.clip import TextTower
from ..features.weights import oracle_name
from ..metrics.caption_match import UNIT as CAPTION_UNIT
from ..metrics.caption_match import caption_setup, captions, text_match
from ..metrics.identity import identity, mean_direction
from ..stats.scores import Rate, Score, Setup, kept_rate

Group = Literal["alone", "composed", "class", "siblings", "unrelated"]
"""The instance by itself; in styles, places and company; then plain prompts of its class, of what is like it, of the
rest."""
KEPT: tuple[Group, ...] = ("class", "siblings", "unrelated")
Fits = Mapping[str, Float[np.ndarray, " n"]]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One picture to be made by every state of the model.

    Attributes:
        group: What it is for.
        prompt: With `{}` where the instance goes; the original, which does not know it, is asked for the class.
        seed: Of the noise.
        name: What should be seen: the class, or what else was asked for.
        parts: What should be seen beside it.
    """

    group: Group
    prompt: str
    seed: int
    name: str
    parts: tuple[str, ...] = ()

    def filled(self, phrase: str) -> str:
        """Return the prompt with a phrase for the instance."""
        return fill(self.prompt, phrase) if "{}" in self.prompt else self.prompt

    def texts(self, class_word: str) -> list[str]:
        """Return what the picture is matched with: the whole prompt, and each part of it by itself."""
        whole = self.filled(class_word)
        return [whole, *((fill("a photo of a {}", class_word), *self.parts) if self.parts else ())]


@runtime_checkable
class InstanceJudge(Protocol):
    """Who looks at pictures of an instance."""

    @property
    def title(self) -> str:
        """Who, in words."""
        ...

    @property
    def setups(self) -> Mapping[str, Setup]:
        """The protocol of each number, by name."""
        ...

    @property
    def skipped(self) -> Mapping[str, str]:
        """What is not computed, with the reason."""
        ...

    def likeness(self, images: Sequence[Image.Image]) -> Fits:
        """Return how like the instance's pictures each picture is, by one or several measures."""
        ...

    def fits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Fits:
        """Return how well each picture fits its text, by one or several measures."""
        ...

    def sees(self, images: Sequence[Image.Image], names: Sequence[str]) -> Bool[np.ndarray, " n"] | None:
        """Say of each picture whether it shows what is named for it; None from a judge that cannot tell."""
        ...


@dataclass(kw_only=True)
class WorldJudge:
    """The tiny world's oracle, and its text judge for captions written from what the oracle sees.

    Attributes:
        oracle: Looks.
        judge: Compares texts.
        class_word: What the instance is one of, as the world calls it.
        pictures: Of the instance, of any size.
    """

    title = "the tiny world's oracle"

    oracle: Oracle
    judge: TextJudge
    class_word: str
    pictures: Sequence[Image.Image]
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What all of its class share says nothing of which one it is.
        rng = random.Random(f"class of an instance: {self.class_word}")
        scenes = vocabulary.SCENES
        others = [draw(compose([self.class_word], rng, scene=scenes[at % len(scenes)])) for at in range(48)]
        self._class = self.oracle.read(others).features.mean(0)
        own = [squared(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for picture in self.pictures]
        self._reference = mean_direction(self.oracle.read(own).features - self._class)
        self._tower = TextTower(self.judge)

    @property
    def setups(self) -> Mapping[str, Setup]:
        """The protocol of each number."""
        reference = f"{len(self.pictures)} pictures it was learned from, less drawings of a {self.class_word}"
        return {
            "identity": Setup(metric="identity", backbone=oracle_name(self.oracle), reference=reference),
            "caption_match": caption_setup(self.oracle, self.judge),
            "seen": Setup(metric="seen", backbone=oracle_name(self.oracle)),
        }

    def likeness(self, images: Sequence[Image.Image]) -> Fits:
        return {"identity": identity(self.oracle.read(list(images)).features - self._class, self._reference)}

    def fits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Fits:
        written = self._tower.features(captions(self._classes(self.oracle.read(list(images)))))
        return {"caption_match": text_match(written, self._tower.features(texts)).numpy()}

    def _classes(self, reading: Reading) -> Reading:
        """Return a reading in which individuals of the class are just that: what is asked for has no other name."""
        own = [THINGS.index(who) for who, kind in vocabulary.INDIVIDUALS.items() if kind == self.class_word]
        things = reading.things.copy()
        at = THINGS.index(self.class_word)
        things[:, at] = things[:, [at, *own]].max(1)
        things[:, own] = 0.0
        return replace(reading, things=things)

    def sees(self, images: Sequence[Image.Image], names: Sequence[str]) -> Bool[np.ndarray, " n"] | None:
        reading = self.oracle.read(list(images))
        return np.array([bool(reading.sees(name)[at]) for at, name in enumerate(names)])


@dataclass(kw_only=True)
class BackboneJudge:
    """CLIP, DINO and BLIP, as far as their weights are in the local cache; nothing is downloaded.

    Attributes:
        pictures: Of the instance.
        device: Where they run.
    """

    title = "CLIP, DINO and BLIP"

    pictures: Sequence[Image.Image]
    device: str = "cpu"
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from ..features.clip import OpenClip
        from ..features.image_features import extractor
        from ..metrics.blip2_t import Blip2Itc, Blip2Itm, BlipItc
        from ..metrics.clip_i import ClipI
        from ..metrics.clip_score import ClipScore
        from ..metrics.dino_i import DinoI

        self._like: dict[str, Any] = {}
        self._fit: dict[str, Any] = {}
        self._loaded(
            "clip_i", self._like, lambda: ClipI(extractor=extractor("clip:ViT-B-32:openai", device=self.device))
        )
        self._loaded("dino_i", self._like, lambda: DinoI(extractor=extractor("dino", device=self.device)))
        self._loaded("clip_score", self._fit, lambda: ClipScore(clip=OpenClip.load(device=self.device)))
        for kind in (BlipItc, Blip2Itc, Blip2Itm):
            self._loaded(kind.name, self._fit, lambda kind=kind: kind.load(device=self.device))

    def _loaded(self, name: str, into: dict[str, Any], load: Any) -> None:
        try:
            into[name] = load()
        except ErasureError as error:
            self.skipped[name] = str(error)

    @property
    def setups(self) -> Mapping[str, Setup]:
        """The protocol of each number."""
        return {name: metric.setup for name, metric in {**self._like, **self._fit}.items()}

    def likeness(self, images: Sequence[Image.Image]) -> Fits:
        found = {}
        for name, metric in self._like.items():
            fresh = type(metric)(extractor=metric.extractor, reference="the pictures it was learned from")
            found[name] = _values(fresh.update_reference(list(self.pictures)).update(list(images)))
        return found

    def fits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Fits:
        found = {}
        for name, metric in self._fit.items():
            fresh = (
                type(metric)(clip=metric.clip)
                if name == "clip_score"
                else type(metric)(model=metric.model, processor=metric.processor, source=metric.source)
            )
            found[name] = _values(fresh.update(list(images), list(texts)))
        return found

    def sees(self, images: Sequence[Image.Image], names: Sequence[str]) -> Bool[np.ndarray, " n"] | None:
        return None


def _values(metric: Any) -> Float[np.ndarray, " n"]:
    return np.array(metric.compute().per_image)


# The prompts of the paper's figures are of this kind; these are ours.
_CONTEXTS = (
    ("a photo of a {} on the beach", "the beach"),
    ("a photo of a {} in the snow", "snow"),
    ("a photo of a {} with a mountain in the background", "a mountain"),
    ("a photo of a {} wearing a red hat", "a red hat"),
    ("a photo of a {} wearing headphones", "headphones"),
    ("a photo of a {} beside a bicycle", "a bicycle"),
    ("a watercolor painting of a {}", "a watercolor painting"),
    ("a pencil drawing of a {}", "a pencil drawing"),
)
_UNRELATED = (
    "a photo of a house",
    "a photo of a tree",
    "a photo of a car",
    "a photo of a bridge",
    "a photo of a table",
)


def world_asks(
    class_word: str, *, composed: int, kept: int, first_seed: int = 3_000_000, without: Sequence[str] = ()
) -> list[Ask]:
    """Return what the tiny world is asked: every style and scene, and other things beside the instance.

    Args:
        class_word: What the instance is one of.
        composed: Pictures of the instance in company, and as many of it alone.
        kept: Pictures of each of the three groups that should stay.
        first_seed: Of the noise; they count on from it.
        without: Individuals that are not asked for.
    """
    family = vocabulary.OBJECTS[class_word]
    company = [name for name, kind in vocabulary.OBJECTS.items() if kind not in (family, "weapon")]
    contexts = [
        *((vocabulary.STYLE_PHRASES[style][0], (style,)) for style in vocabulary.STYLES[1:]),
        *((f"a {{}} {vocabulary.SCENE_PHRASES[scene][0]}", (scene,)) for scene in vocabulary.SCENES[1:]),
        *((f"a {{}} and {vocabulary.article(name)}", (name,)) for name in company),
    ]
    # A style's phrase has room for a thing with its article.
    contexts = [(text if "a {}" in text else text.replace("{}", "a {}"), parts) for text, parts in contexts]
    turns = [contexts[at % len(contexts)] for at in range(composed)]
    siblings = [name for name in vocabulary.FAMILIES[family] if name != class_word]
    siblings += [
        name for name in vocabulary.TAUGHT_INDIVIDUALS if vocabulary.INDIVIDUALS[name] in (class_word, *siblings)
    ]
    siblings = [name for name in siblings if name not in without]
    unrelated = [name for name in vocabulary.concepts() if name not in (class_word, *siblings, *without)]
    wanted: list[tuple[Group, str, str, tuple[str, ...]]] = [
        *(("alone", "a photo of a {}", class_word, ()) for _ in range(composed)),
        *(("composed", prompt, class_word, parts) for prompt, parts in turns),
    ]
    for group, names in (("class", [class_word]), ("siblings", siblings), ("unrelated", unrelated)):
        for at in range(kept):
            name = names[at % len(names)]
            prompt = vocabulary.prompts_for(name, at // len(names) + 1, seed=1)[-1]
            wanted.append((group, prompt, name, ()))  # type: ignore[arg-type]
    return _numbered(wanted, first_seed)


def named_asks(
    class_word: str, siblings: Sequence[str], *, composed: int, kept: int, first_seed: int = 3_000_000
) -> list[Ask]:
    """Return what any other model is asked; without siblings that group is empty. For arguments see `world_asks`."""
    wanted: list[tuple[Group, str, str, tuple[str, ...]]] = [
        *(("alone", "a photo of a {}", class_word, ()) for _ in range(composed)),
        *(("composed", text, class_word, (part,)) for text, part in (_CONTEXTS * composed)[:composed]),
        *(("class", fill("a photo of a {}", class_word), class_word, ()) for _ in range(kept)),
        *(
            ("siblings", fill("a photo of a {}", name), name, ())
            for name in (list(siblings) * kept)[: kept if siblings else 0]
        ),
        *(("unrelated", text, text.removeprefix("a photo of a "), ()) for text in (_UNRELATED * kept)[:kept]),
    ]
    return _numbered(wanted, first_seed)


def _numbered(wanted: Sequence[tuple[Group, str, str, tuple[str, ...]]], first_seed: int) -> list[Ask]:
    return [
        Ask(group=group, prompt=prompt, seed=first_seed + at, name=name, parts=parts)
        for at, (group, prompt, name, parts) in enumerate(wanted)
    ]


@dataclass(frozen=True, kw_only=True)
class InstanceScores:
    """What one state of the model does.

    Attributes:
        likeness: To the instance's pictures: of pictures of it alone, composed, and of plain pictures of its class.
        fits: Of composed pictures, by metric: with the whole prompt, and the least over the whole and its parts.
        composed: Share of composed pictures that show the class and all parts; None from a judge that cannot tell.
        retention: By group, of the pictures that showed what was asked for before, the share that still do.
        moved: By group, how well pictures fit their prompts, less the original's for the same seeds, by metric.
    """

    likeness: Mapping[str, Mapping[str, Score]]
    fits: Mapping[str, Mapping[str, Score]]
    composed: Rate | None
    retention: Mapping[str, Rate | None]
    moved: Mapping[str, Mapping[str, Score]]

    def as_json(self) -> dict[str, Any]:
        """Give the scores as plain data."""

        def nested(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
            return {key: {name: score.as_json() for name, score in inner.items()} for key, inner in scores.items()}

        return {
            "likeness": nested(self.likeness),
            "fits": nested(self.fits),
            "composed": self.composed and self.composed.as_json(),
            "retention": {group: rate and rate.as_json() for group, rate in self.retention.items()},
            "moved": nested(self.moved),
        }


# Groups differ in size: each array has a length of its own.
Values = Float[np.ndarray, " _"]
Flags = Bool[np.ndarray, " _"]


@dataclass(frozen=True, kw_only=True)
class InstanceLooks:
    """What a judge makes of one state's pictures, by group.

    Attributes:
        likeness: To the instance's pictures, by measure: alone, composed, and of the plain class.
        parts: Of composed pictures, by metric: the fit with the whole prompt, then with each part.
        composed: Whether each composed picture shows the class and all parts; None from a judge that cannot tell.
        seen: Of what should stay, whether each picture shows what was asked for; None likewise.
        fits: Of what should stay, how well each picture fits its prompt, by metric.
    """

    likeness: Mapping[str, Mapping[str, Values]]
    parts: Mapping[str, Sequence[Values]]
    composed: Flags | None
    seen: Mapping[str, Flags | None]
    fits: Mapping[str, Mapping[str, Values]]


def instance_looks(
    asks: Sequence[Ask], class_word: str, judge: InstanceJudge, images: Sequence[Image.Image]
) -> InstanceLooks:
    """Have the pictures of one state looked at, each once by each measure.

    Args:
        asks: What was asked for.
        class_word: What the instance is one of: judges do not know its new word.
        judge: Who looks.
        images: In the order of the asks.
    """
    rows = {group: [at for at, ask in enumerate(asks) if ask.group == group] for group in get_args(Group)}

    def of(group: str) -> tuple[list[Ask], list[Image.Image]]:
        return [asks[at] for at in rows[group]], [images[at] for at in rows[group]]

    likeness: dict[str, dict[str, Float[np.ndarray, " n"]]] = {}
    for group in ("alone", "composed", "class"):
        for name, values in judge.likeness(of(group)[1]).items():
            likeness.setdefault(name, {})[group] = values
    company, shown = of("composed")
    kept = {group: of(group) for group in KEPT if rows[group]}
    return InstanceLooks(
        likeness=likeness,
        parts=_parts(company, class_word, judge, shown),
        composed=_composed(company, judge, shown),
        seen={group: judge.sees(pictures, [ask.name for ask in some]) for group, (some, pictures) in kept.items()},
        fits={
            group: judge.fits(pictures, [ask.filled(class_word) for ask in some])
            for group, (some, pictures) in kept.items()
        },
    )


def instance_scores(judge: InstanceJudge, before: InstanceLooks, after: InstanceLooks) -> InstanceScores:
    """Score one state beside the original.

    Args:
        judge: Who looked.
        before: At the original's pictures.
        after: At the state's, for the same asks.
    """
    setups = judge.setups
    return InstanceScores(
        likeness={
            name: {group: _mean(values, setups[name]) for group, values in groups.items()}
            for name, groups in after.likeness.items()
        },
        fits={
            name: {"whole": _mean(parts[0], setups[name]), "least": _mean(np.min(parts, 0), setups[name])}
            for name, parts in after.parts.items()
        },
        composed=None if after.composed is None else Rate.of(after.composed),
        retention={group: _kept(before.seen.get(group), after.seen.get(group)) for group in KEPT},
        moved={
            group: {name: _mean(values - before.fits[group][name], setups[name]) for name, values in fits.items()}
            for group, fits in after.fits.items()
        },
    )


def _kept(before: Bool[np.ndarray, " n"] | None, after: Bool[np.ndarray, " n"] | None) -> Rate | None:
    return None if before is None or after is None else kept_rate(before, after)


def _mean(values: Float[np.ndarray, " n"], setup: Setup) -> Score:
    unit = {"caption_match": CAPTION_UNIT, "clip_score": "100 x cosine", "blip2_itm": "probability"}
    return Score.mean(values, unit=unit.get(setup.metric, "cosine"), higher_is_better=True, setup=setup)


def _parts(
    company: Sequence[Ask], class_word: str, judge: InstanceJudge, images: Sequence[Image.Image]
) -> dict[str, list[Float[np.ndarray, " n"]]]:
    by_part: dict[str, list[Float[np.ndarray, " n"]]] = {}
    texts = [ask.texts(class_word) for ask in company]
    for part in range(max(map(len, texts), default=0)):
        for name, values in judge.fits(images, [each[min(part, len(each) - 1)] for each in texts]).items():
            by_part.setdefault(name, []).append(values)
    return by_part


def _composed(
    company: Sequence[Ask], judge: InstanceJudge, images: Sequence[Image.Image]
) -> Bool[np.ndarray, " n"] | None:
    seen = judge.sees(images, [ask.name for ask in company]) if company else None
    if seen is None:
        return None
    for part in range(max(len(ask.parts) for ask in company)):
        also = judge.sees(images, [ask.parts[min(part, len(ask.parts) - 1)] for ask in company])
        seen = seen & also if also is not None else seen
    return seen
