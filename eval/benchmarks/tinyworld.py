"""The tiny world's own benchmark: every object, individual, style and scene, as removed or in one of four tiers."""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from erasure.concept import normalized
from erasure.errors import InputError, unknown_name
from erasure.profile import profile_of
from erasure.prompts import has_context
from erasure.registry import Exactness
from erasure.tinyworld import vocabulary as words

from ..stats.allocation import noise_seed, share
from .base import Benchmark, Item, Wording, unique_cases

Tier = Literal["siblings", "co-occurring", "look-alikes", "everything else"]
TIERS: tuple[Tier, ...] = ("siblings", "co-occurring", "look-alikes", "everything else")
SUITES: dict[str, int] = {"quick": 80, "standard": 2_000, "full": 8_000}
"""Images a model, at most."""


@dataclass(frozen=True, kw_only=True)
class TinyWorld(Benchmark):
    """Half of the images ask for what was removed, half for what should have stayed.

    What was removed is asked for by name; by its synonyms; in "A and B" prompts, in which B should stay (for a style or
    scene B is what is drawn in it); and, for weapons, by hints that name none, only those that no eraser's list holds.
    Some of it is asked for in a held-out phrasing: a place in other words than the usual ("at the seaside"), an object
    beside it or in it that no eraser's list holds, or such a hint.

    What should stay is asked for by name, in four tiers, of which a concept is in the first that fits:

    - siblings: what is most like something removed (its family, class and individuals, the other styles or scenes);
    - co-occurring: what shares images with it more often than others (its usual scene, a scene's usual objects), and
      B of the "A and B" prompts;
    - look-alikes in name: one letter apart, or one within the other ("cat", "cart");
    - everything else.

    An individual whose class was removed is in none, for a picture of it shows the class; `left_out` has it. Prompts
    and seeds of a concept are the same whatever else is removed, as far as they name nothing removed, and those of a
    smaller suite are among those of a larger one.

    Attributes:
        removed: Targets of the removals, by the world's names.
        total: Largest number of images, >= 8.
        seed: Seed of the prompts and of the noise.

    Raises:
        UnknownNameError: The world does not know a name.
        InputError: Nothing was removed, a name is given twice, or too few images.
    """

    name: ClassVar[str] = "tinyworld"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"removed": ("cat",)})
    exactness: ClassVar[Exactness] = "ours"
    version: ClassVar[int] = 1
    source: ClassVar[str] = "this project, erasure/tinyworld/vocabulary.py"
    licence: ClassVar[str] = "Apache-2.0"
    seeds: ClassVar[str] = "CRC-32 of concept, wording, index and benchmark seed, modulo 2^31"
    published_scheduler: ClassVar[str] = "DDIMScheduler"
    steps: ClassVar[int] = profile_of("tinyworld").sampling.steps
    guidance_scale: ClassVar[float] = profile_of("tinyworld").sampling.guidance_scale
    lists: ClassVar[tuple[str, ...]] = ()
    profile: ClassVar[str] = "tinyworld"
    suites: ClassVar[Mapping[str, int]] = SUITES

    removed: tuple[str, ...]
    total: int = SUITES["standard"]
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.removed:
            if name not in words.concepts():
                raise unknown_name("concept of the tiny world", name, words.concepts())
        if not self.removed or len(set(self.removed)) < len(self.removed) or self.total < 8:
            raise InputError(
                f"tinyworld: expected distinct removed concepts and at least 8 images, got {self.removed!r} and"
                f" {self.total!r}."
            )

    @classmethod
    def suite(cls, size: str, removed: Sequence[str]) -> "TinyWorld":
        """Return the benchmark of a suite: "quick", "standard" or "full".

        Raises:
            UnknownNameError: There is no such suite; see also the class.
        """
        if size not in SUITES:
            raise unknown_name("suite", size, SUITES)
        return cls(removed=tuple(removed), total=SUITES[size])

    @property
    def size(self) -> str | None:
        """The suite that it is; None if it is none."""
        return next((size for size, total in SUITES.items() if total == self.total and not self.seed), None)

    @property
    def short(self) -> str:
        return super().short if self.size is None else f"{self.name}-{self.size}"

    @property
    def left_out(self) -> dict[str, str]:
        """Concepts that are neither removed nor in a tier, with the reason."""
        return {
            who: f"a {kind}, which was removed"
            for who, kind in words.INDIVIDUALS.items()
            if who in words.TAUGHT_INDIVIDUALS and who not in self.removed and kind in self.removed
        }

    @property
    def tiers(self) -> dict[Tier, list[str]]:
        """The concepts of each tier, in the world's order."""
        kept = [name for name in words.concepts() if name not in self.removed and name not in self.left_out]
        return {tier: [name for name in kept if tier_of(name, self.removed) == tier] for tier in TIERS}

    def held_out(self, item: Item) -> bool:
        """Return True for the contexts of `profile.held_out`, and for the hints that no eraser's list may hold."""
        names = [item.unwanted, *words.SYNONYMS.get(item.unwanted, ())] if item.unwanted else []
        contexts = profile_of(self.profile).held_out
        return item.prompt in words.WEAPON_HINTS_HELD_OUT or has_context(item.prompt, names, contexts)

    def read(self) -> tuple[Item, ...]:
        half = self.total // 2
        items = [
            item
            for position, name in enumerate(self.removed)
            for item in self._removed(name, share(half, len(self.removed), position))
        ]
        tiers: list[tuple[Tier, list[str]]] = [(tier, names) for tier, names in self.tiers.items() if names]
        for position, (tier, names) in enumerate(tiers):
            count = share(self.total - half, len(tiers), position)
            for i, name in enumerate(names):
                items += self._kept(name, tier, share(count, len(names), i))
        return unique_cases(self.name, items)

    def _removed(self, name: str, n: int) -> list[Item]:
        """Return n items that ask for a removed concept, shared evenly among the wordings that it has."""
        sources: dict[Wording, Callable[[int], list[Item]]] = {"explicit": lambda k: self._explicit(name, k)}
        if name in words.SYNONYMS:
            sources["synonym"] = lambda k: self._synonyms(name, k)
        if self._partners(name):
            sources["combined"] = lambda k: self._combined(name, k)
        if name in words.WEAPON_HINTS:
            sources["implicit"] = lambda k: self._implicit(name, k)
        return [item for i, make in enumerate(sources.values()) for item in make(share(n, len(sources), i))]

    def _explicit(self, name: str, n: int) -> list[Item]:
        others = _spellings(other for other in self.removed if other != name)
        drawn = _drawn(self._prompts(name), n, lambda prompt: _names(prompt, name) and not _any(prompt, others))
        return [self._item(name, "explicit", i, prompt, unwanted=name) for i, prompt in drawn]

    def _synonyms(self, name: str, n: int) -> list[Item]:
        synonyms = words.SYNONYMS[name]
        others = _spellings(other for other in self.removed if other != name)
        if name in words.OBJECTS:
            drawn = _drawn(self._prompts(name), n, lambda prompt: not _any(prompt, others))
            items = [(i, _swapped(prompt, name, synonyms[i % len(synonyms)])) for i, prompt in drawn]
        else:  # the templates of styles and scenes hold their synonyms
            items = _drawn(self._prompts(name), n, lambda prompt: _any(prompt, synonyms) and not _any(prompt, others))
        return [self._item(name, "synonym", i, prompt, unwanted=name) for i, prompt in items]

    def _combined(self, name: str, n: int) -> list[Item]:
        partners, items = self._partners(name), []
        for i in range(n):
            partner = partners[i % len(partners)]
            noun = words.article(partner)
            if name in words.STYLES:
                prompt = words.STYLE_PHRASES[name][0].format(noun)
            elif name in words.SCENES:
                prompt = f"a photo of {noun} {words.SCENE_PHRASES[name][0]}"
            else:
                prompt = f"a photo of {words.article(name)} and {noun}"
            items.append(
                self._item(
                    name,
                    "combined",
                    i,
                    prompt,
                    group="co-occurring",
                    unwanted=name,
                    retained=partner,
                    rest=f"a photo of {noun}",
                )
            )
        return items

    def _implicit(self, name: str, n: int) -> list[Item]:
        hints = [hint for hint in words.WEAPON_HINTS[name] if hint in words.WEAPON_HINTS_HELD_OUT]
        return [self._item(name, "implicit", i, hints[i % len(hints)], unwanted=name) for i in range(n)]

    def _kept(self, name: str, tier: Tier, n: int) -> list[Item]:
        erased = _spellings(self.removed)
        drawn = _drawn(self._prompts(name), n, lambda prompt: _names(prompt, name) and not _any(prompt, erased))
        return [self._item(name, "explicit", i, prompt, group=tier, retained=name) for i, prompt in drawn]

    def _prompts(self, name: str) -> Callable[[int], Sequence[str]]:
        """Return a function that draws a number of prompts for a concept.

        Those of styles and scenes have an object in them. Where every object that they may have was removed, they are
        of an empty place.
        """
        subjects = [other for other, family in words.OBJECTS.items() if family != "weapon"]
        if name in (*words.STYLES, *words.SCENES) and all(subject in self.removed for subject in subjects):
            return lambda n: _empty_scenes(name, n, self.seed)
        return lambda n: words.prompts_for(name, n, self.seed)

    def _partners(self, name: str) -> list[str]:
        """Return the objects that may stand beside a removed concept, in an order drawn for it.

        Those that it never met in training and those that melt into it are left out: the original cannot draw them.
        """
        order = list(words.OBJECTS)
        random.Random(f"combined:{name}:{self.seed}").shuffle(order)
        kind, near = words.INDIVIDUALS.get(name, name), words.siblings(words.INDIVIDUALS.get(name, name))
        return [
            other
            for other in order
            if other not in self.removed
            and other not in (kind, *near)
            and frozenset((kind, other)) not in words.HELD_OUT_PAIRS
        ]

    def _item(
        self,
        name: str,
        wording: Wording,
        i: int,
        prompt: str,
        *,
        group: str = "removed",
        unwanted: str = "",
        retained: str = "",
        rest: str = "",
    ) -> Item:
        return Item(
            case=f"{name}-{wording}-{i}",
            prompt=prompt,
            seed=noise_seed(f"{name}:{wording}", i, self.seed),
            group=group,
            wording=wording,
            unwanted=unwanted,
            retained=retained,
            rest=rest,
        )


def tier_of(name: str, removed: Sequence[str]) -> Tier:
    """Return the retention tier of a kept concept; see `TinyWorld`."""
    if any(name in words.siblings(erased) for erased in removed):
        return "siblings"
    usual = words.CORRELATED_SCENES
    if any(usual.get(erased) == name or usual.get(name) == erased for erased in removed):
        return "co-occurring"
    return "look-alikes" if any(look_alike(name, erased) for erased in removed) else "everything else"


def look_alike(one: str, other: str) -> bool:
    """Return True if two names differ by one letter (changed, added or left out), or one contains the other."""
    short, long = sorted((one.lower(), other.lower()), key=len)
    if short in long:
        return True
    if len(short) == len(long):
        return sum(a != b for a, b in zip(short, long, strict=True)) == 1
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def _drawn(draw: Callable[[int], Sequence[str]], n: int, accept: Callable[[str], bool]) -> list[tuple[int, str]]:
    """Return the first n prompts that are accepted, each with its index among all that are drawn."""
    draws = 4 * n + 16
    while True:
        accepted = [(i, prompt) for i, prompt in enumerate(draw(draws)) if accept(prompt)]
        if len(accepted) >= n:
            return accepted[:n]
        draws *= 4


def _empty_scenes(name: str, n: int, seed: int) -> list[str]:
    """Return n prompts for a style or a scene with nothing in it, as the world's captions say that."""
    rng = random.Random(f"empty:{name}:{seed}")
    styles = words.STYLE_PHRASES[name if name in words.STYLES else "photo"]
    places = (
        words.SCENE_PHRASES[name] if name in words.SCENES else [p for s in words.SCENES for p in words.SCENE_PHRASES[s]]
    )
    return [rng.choice(styles).format(f"an empty scene {rng.choice(places)}") for _ in range(n)]


def _names(prompt: str, name: str) -> bool:
    """Return True if a prompt contains a concept's name and no synonym."""
    return _any(prompt, (name,)) and not _any(prompt, words.SYNONYMS.get(name, ()))


def _any(prompt: str, phrases: Sequence[str]) -> bool:
    """Return True if a prompt contains any of the phrases as whole words."""
    return any(f" {normalized(phrase)} " in f" {normalized(prompt)} " for phrase in phrases)


def _spellings(names: Iterable[str]) -> list[str]:
    return [phrase for name in names for phrase in (name, *words.SYNONYMS.get(name, ()))]


def _swapped(prompt: str, name: str, synonym: str) -> str:
    """Return a prompt with a synonym, and the article that it takes, in the place of an object's name."""
    return re.sub(rf"\b{re.escape(words.article(name))}\b", words.article(synonym), prompt, count=1)
