"""The profiles of the tiny world's models: everything is known of it, and an oracle is the judge."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict, TypeGuard

from .. import tinyworld
from ..concept import Concept
from ..errors import InputError, UnknownNameError, unknown_name
from ..judge import Judge, ZeroShotJudge
from ..profile import ModelProfile
from ..prompts import speaks_of
from . import vocabulary

if TYPE_CHECKING:
    import torch
    from diffusers import FluxPipeline, StableDiffusionPipeline
    from PIL.Image import Image


class TinyWorldProfile(ModelProfile):
    """Profile of the embedded model."""

    name: ClassVar[str] = "tinyworld"
    concepts: ClassVar[tuple[str, ...]] = vocabulary.concepts()
    folder: ClassVar[Path | None] = tinyworld.MODEL
    held_out: ClassVar[tuple[str, ...]] = (*vocabulary.HELD_OUT_PHRASES, *vocabulary.HELD_OUT_SUBJECTS)
    novel: ClassVar[str] = "Rusty"

    def load(self, *, device: "str | torch.device", dtype: "torch.dtype") -> "StableDiffusionPipeline | FluxPipeline":
        return tinyworld.load(device=device, dtype=dtype)

    def canonical(self, text: str) -> str | None:
        return vocabulary.canonical(text)

    def aliases(self, name: str) -> tuple[str, ...]:
        return vocabulary.SYNONYMS.get(name, ())

    def kind(self, name: str) -> str | None:
        return vocabulary.kind_of(name)

    def ability(self, name: str) -> str:
        return "scene" if name in vocabulary.SCENES else super().ability(name)

    def member_of(self, name: str) -> str | None:
        return vocabulary.INDIVIDUALS.get(name)

    def siblings(self, name: str) -> tuple[str, ...]:
        return vocabulary.siblings(name)

    def completed(self, requests: Sequence[object]) -> list[object]:
        named = [
            {**request, "target": self._concept(request["target"])} if _is_request(request) else request
            for request in requests
        ]
        for request in named:
            if _is_request(request):
                self._check_texts(request)
        return [self._filled(request) if _is_request(request) else request for request in named]

    def class_name(self, text: str, siblings: Sequence[str] = ()) -> str:
        if siblings:
            raise InputError(f"--siblings: expected none for {self.name}, which knows them, got {siblings[0]!r}.")
        name = vocabulary.canonical(text)
        if name not in vocabulary.OBJECTS:
            raise unknown_name("class of the tiny world", text, tuple(vocabulary.OBJECTS))
        return name

    def prompts(self, name: str, n: int, seed: int = 0) -> list[str]:
        known = vocabulary.canonical(name)
        return [] if known is None else vocabulary.prompts_for(known, n, seed)

    def example_prompt(self, name: str) -> str:
        if name in vocabulary.STYLES:
            return vocabulary.STYLE_PHRASES[name][0].format("a house")
        if name in vocabulary.SCENES:
            return f"a dog {vocabulary.SCENE_PHRASES[name][0]}"
        return f"{vocabulary.article(name)} on the beach"

    def examples(self, name: str, n: int, seed: int = 0) -> "list[Image]":
        from .world import compose, draw

        images = []
        for i in range(n if vocabulary.kind_of(name) else 0):
            rng = random.Random(f"examples:{seed}:{i}")
            things = sorted(thing for thing, family in vocabulary.OBJECTS.items() if family != "weapon")
            scene, thing = rng.choice(vocabulary.SCENES), rng.choice(things)
            if name in vocabulary.STYLES:
                images.append(draw(compose([thing], rng, style=name, scene=scene)))
            elif name in vocabulary.SCENES:
                images.append(draw(compose([thing], rng, scene=name)))
            else:
                images.append(draw(compose([name], rng, scene=scene)))
        return images

    def hypernym(self, name: str) -> str:
        family = vocabulary.OBJECTS.get(vocabulary.INDIVIDUALS.get(name, name), "")
        return family if family in vocabulary.FAMILY_WORDS else ""

    def descriptions(self, name: str) -> tuple[str, ...]:
        return vocabulary.WEAPON_HINTS.get(name, ())

    def named_in(self, prompt: str) -> tuple[str, ...]:
        things = (*vocabulary.OBJECTS, *vocabulary.TAUGHT_INDIVIDUALS, *vocabulary.STYLES[1:])
        known = (Concept(target=name, aliases=self.aliases(name)) for name in things)
        return tuple(concept.target for concept in known if speaks_of(prompt, [concept]))

    def relatives(self, class_name: str) -> list[str]:
        family = [name for name in vocabulary.FAMILIES[vocabulary.OBJECTS[class_name]] if name != class_name]
        members = (name for name in vocabulary.TAUGHT_INDIVIDUALS if self.member_of(name) in (class_name, *family))
        return [*family, *members]

    def contexts(self, class_name: str) -> list[tuple[str, tuple[str, ...]]]:
        family = vocabulary.OBJECTS[class_name]
        company = [name for name, kind in vocabulary.OBJECTS.items() if kind not in (family, "weapon")]
        contexts = [
            *((vocabulary.STYLE_PHRASES[style][0], (style,)) for style in vocabulary.STYLES[1:]),
            *((f"a {{}} {vocabulary.SCENE_PHRASES[scene][0]}", (scene,)) for scene in vocabulary.SCENES[1:]),
            *((f"a {{}} and {vocabulary.article(name)}", (name,)) for name in company),
        ]
        # A style's phrase has room for a thing with its article.
        return [(text if "a {}" in text else text.replace("{}", "a {}"), parts) for text, parts in contexts]

    def judges(self, device: str = "cpu", names: Sequence[str] = ()) -> list[Judge]:
        return [tinyworld.load_oracle(device), _second_judge(device)]

    def judge(self, device: str = "cpu", names: Sequence[str] = ()) -> Judge:
        return tinyworld.load_oracle(device)

    def _concept(self, text: str) -> str:
        name = vocabulary.canonical(text)
        if name not in self.concepts:
            raise self._unknown(text)
        return name

    def _unknown(self, text: str) -> UnknownNameError:
        synonyms = [word for words in vocabulary.SYNONYMS.values() for word in words]
        return unknown_name("concept of the tiny world", text, [*self.concepts, *synonyms])

    def _check_texts(self, request: Mapping[str, object]) -> None:
        """Refuse an anchor or a preserved text with a word that no caption had: the model learned nothing of it."""
        preserve = request.get("preserve")
        for text in (request.get("anchor"), *(preserve if isinstance(preserve, list | tuple) else ())):
            if isinstance(text, str) and not vocabulary.words_in(text) <= vocabulary.caption_words():
                raise self._unknown(text)

    def _filled(self, request: Mapping[str, object]) -> dict[str, object]:
        """Return a request with what is known of its target, whatever other requests there are."""
        target = str(request["target"])
        known = {
            "kind": self.kind(target),
            "aliases": list(self.aliases(target)),
            "preserve": self.kept_beside([target]),
        }
        return {**known, **request}


class TinyWorldFluxProfile(TinyWorldProfile):
    """Profile of the transformer: the world is the same, the model another."""

    name: ClassVar[str] = "tinyworld-flux"
    folder: ClassVar[Path | None] = tinyworld.FLUX

    def load(self, *, device: "str | torch.device", dtype: "torch.dtype") -> "FluxPipeline":
        return tinyworld.load_flux(device=device, dtype=dtype, folder=tinyworld.FLUX)


class _Request(TypedDict):
    """Removal request that names its target; it may have more keys."""

    target: str


def _is_request(request: object) -> TypeGuard[_Request]:
    """Return True for a mapping with a target; the schema refuses anything else."""
    return isinstance(request, Mapping) and isinstance(request.get("target"), str)


def _second_judge(device: str = "cpu") -> ZeroShotJudge:
    """Return the shipped model as a zero-shot judge among all that a picture can be of.

    It was trained apart from the oracle, on captions instead of facts. Objects, styles and scenes are told apart each
    among themselves; "nothing" is one of the objects.
    """
    clip = tinyworld.load_clip(device)
    return ZeroShotJudge(
        "the tiny world's open_clip judge, zero-shot",
        clip,
        _choices,
        knows=lambda concept: vocabulary.canonical(concept) is not None,
        logit_scale=clip.logit_scale,
    )


def _choices(concept: str) -> tuple[list[str], int]:
    """Return one text for each name of the concept's group, and the concept's position among them."""
    name = vocabulary.canonical(concept) or concept
    if name in vocabulary.STYLES:
        names = vocabulary.STYLES
        texts = [f"{style} of a house" if style == "photo" else f"a house in {style} style" for style in names]
    elif name in vocabulary.SCENES:
        names = vocabulary.SCENES
        texts = [f"a picture {vocabulary.SCENE_PHRASES[scene][0]}" for scene in names]
    else:
        names = (*vocabulary.OBJECTS, *vocabulary.INDIVIDUALS, "nothing")
        texts = [f"a picture of {vocabulary.article(thing)}" for thing in names[:-1]] + ["a picture of nothing"]
    return texts, names.index(name)
