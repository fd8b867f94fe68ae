"""What is to be removed: a target, what it becomes, what must stay, and the prompts that speak of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

from .errors import InputError, unknown_name

Kind = Literal["object", "style", "identity", "unsafe"]

# Each template beside the same picture without the concept, which is what an empty anchor makes of it. Dropping the
# name alone would leave "a photo of a", whose states are those of a broken sentence. The contexts stand for "anything
# else in the picture": the states after the name carry the concept mixed with them.
_TEMPLATES: Mapping[Kind, Mapping[str, str]] = {
    "object": {
        "{}": "",
        "a {}": "",
        "a photo of a {}": "a photo",
        "a picture of a {}": "a picture",
        "a drawing of a {}": "a drawing",
        "a painting of a {}": "a painting",
        "one {}, nothing else": "nothing else",
        "a {} on the beach": "on the beach",
        "a photo of a {} in the forest": "a photo in the forest",
        "a {} in the city at night": "in the city at night",
        "a {} and a house": "a house",
        "a tree and a {}": "a tree",
        "an image of a {}": "an image",
        "a {} at night": "at night",
        "a {} in the snow": "in the snow",
        "a {} in the desert": "in the desert",
    },
    "style": {
        "{}": "",
        "{} style": "",
        "in {} style": "",
        "a picture in the style of {}": "a picture",
        "a {} picture": "a picture",
        "a {} of a house": "a house",
        "a dog, {}": "a dog",
        "a tree in {} style": "a tree",
        "a cat in the style of {}": "a cat",
        "a car on the beach, {} style": "a car on the beach",
        "a {} drawing of a bird": "a drawing of a bird",
        "the forest in {} style": "the forest",
    },
    "identity": {
        "{}": "",
        "a photo of {}": "a photo",
        "a picture of {}": "a picture",
        "a portrait of {}": "a portrait",
        "a drawing of {}": "a drawing",
        "a painting of {}": "a painting",
        "{}, nothing else": "nothing else",
        "{} on the beach": "on the beach",
        "a photo of {} in the forest": "a photo in the forest",
        "{} in the city at night": "in the city at night",
        "{} and a house": "a house",
        "a tree and {}": "a tree",
        "an image of {}": "an image",
        "{} at night": "at night",
        "{} in the snow": "in the snow",
        "{} in the desert": "in the desert",
    },
    "unsafe": {
        "{}": "",
        "a {}": "",
        "a photo of {}": "a photo",
        "a photo of a {}": "a photo",
        "a picture of a {}": "a picture",
        "a drawing of a {}": "a drawing",
        "a painting of {}": "a painting",
        "someone with a {}": "someone",
        "a {} on the beach": "on the beach",
        "a photo of a {} in the forest": "a photo in the forest",
        "a {} in the city at night": "in the city at night",
        "a {} and a house": "a house",
        "an image of a {}": "an image",
        "a {} at night": "at night",
        "a {} in the snow": "in the snow",
        "a {} in the desert": "in the desert",
    },
}

_ADJECTIVES = ("a small", "a big", "an old", "a red", "a blue", "a green")
_PLACES_AND_TIMES = ("on the beach", "in the city", "in the forest", "in the desert", "in the snow", "at night")
_ACTIONS = ("standing", "moving", "seen from afar", "in the foreground")
CLASS_TEMPLATES: tuple[str, ...] = (
    *(f"{adjective} {{}}" for adjective in _ADJECTIVES),
    *(f"a {{}} {more}" for more in (*_PLACES_AND_TIMES, *_ACTIONS)),
)
"""What is said of members of a class: how they look, where they are, what they do."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One removal request.

    Attributes:
        target: The concept to erase, in words: "Van Gogh".
        anchor: What it becomes; "" is the unconditional prompt.
        preserve: What must not change, in words.
        kind: Picks the prompt templates and the measures.
        aliases: Other names of the target that must go with it.

    Raises:
        InputError: The target or another name is empty, or a name is also preserved or its own anchor.
        UnknownNameError: The kind is none of the four.
    """

    target: str
    anchor: str = ""
    preserve: tuple[str, ...] = ()
    kind: Kind = "object"
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name("kind of concept", self.kind, get_args(Kind))
        for where, words in (("preserve", self.preserve), ("aliases", self.aliases)):
            if isinstance(words, str):
                raise InputError(f"concept.{where}: expected a tuple of texts, got {words!r}. Write ({words!r},).")
        for where, word in (("target", self.target), *(("aliases", alias) for alias in self.aliases)):
            if not word.strip():
                raise InputError(f"concept.{where}: expected words, got {word!r}. Name what is to be erased.")
        names = {normalized(name) for name in self.names}
        for kept in self.preserve:
            if normalized(kept) in names:
                raise InputError(
                    f"concept.preserve: expected what stays, got {kept!r}, a name of the target {self.target!r}."
                    " Take it out of one of the two."
                )
        if normalized(self.anchor) in names:
            raise InputError(
                f"concept.anchor: expected another concept than the target, got {self.anchor!r}."
                " Give what the target should become."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The target and its aliases."""
        return (self.target, *self.aliases)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Concept":
        """Return the concept whose `as_json` gave `data`.

        Raises:
            UnknownNameError: A key is no field of a concept.
            InputError: There is no target.
        """
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise unknown_name("concept field", key, known)
        if "target" not in data:
            raise InputError(f"concept: expected a target, got {dict(data)!r}. Name what is to be erased.")
        columns: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**columns)


def templates(kind: Kind) -> tuple[str, ...]:
    """Return the prompt templates of a kind, each with one `{}` for the name; the first is the bare name."""
    return tuple(_TEMPLATES[kind])


def preserved_templates(kind: Kind) -> tuple[str, ...]:
    """Return the templates in which preserved names are held while a concept of `kind` is removed.

    What stays may be of another kind than what goes: besides those of the removal, the plainest ones of an object.
    """
    return tuple(dict.fromkeys([*_TEMPLATES[kind], *list(_TEMPLATES["object"])[:4]]))


def fill(template: str, name: str) -> str:
    """Put a name into a template, with the article that it needs ("a {}" and "umbrella": "an umbrella")."""
    if name[:1].casefold() in set("aeiou"):
        template = re.sub(r"\b(a) \{\}", r"\1n {}", template)
    return template.replace("{}", name)


def blank(kind: Kind, template: str) -> str:
    """Return the prompt that says what `template` says without the concept: "a photo of a {}" gives "a photo"."""
    return _TEMPLATES[kind][template]


def blank_of(template: str) -> str | None:
    """Return the prompt that says what a template of any kind says without the concept; None for an unknown one."""
    return next((known[template] for known in _TEMPLATES.values() if template in known), None)


def speaks_of(prompt: str, concepts: Sequence["Concept"]) -> bool:
    """Whether a prompt holds a name of one of the concepts, as whole words: "a cat, asleep", not "catfish"."""
    words = normalized(prompt)
    names = {normalized(name) for concept in concepts for name in concept.names}
    return any(name in words and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words) for name in names)


@lru_cache(maxsize=4096)  # a joint solve asks for each name once a row
def normalized(phrase: str) -> str:
    """Return the form in which two spellings of one phrase are equal: case and runs of spaces do not count."""
    return " ".join(phrase.split()).casefold()
