"""Prompts of concepts: templates by kind, pairs of prompts with and without a concept, and phrases within a prompt."""

import re
from collections.abc import Mapping, Sequence

from .concept import Concept, Kind, normalized, normalized_names
from .errors import InputError
from .io.text import composed

# Each template beside the same image without the concept, which is what an empty anchor makes of it. Dropping the
# name alone would leave "a photo of a", whose states are those of a broken sentence. The contexts stand for "anything
# else in the image": the states after the name carry the concept mixed with them. They are of a kind that any corpus of
# captions has. None is of a world's vocabulary, and none is among the phrasings that measures keep to themselves
# (`ModelProfile.held_out`): a measure that asked in the sentences of the eraser would see nothing of what is left.
_TEMPLATES: Mapping[Kind, Mapping[str, str]] = {
    "object": {
        "{}": "",
        "a {}": "",
        "a photo of a {}": "a photo",
        "a picture of a {}": "a picture",
        "a drawing of a {}": "a drawing",
        "a painting of a {}": "a painting",
        "an image of a {}": "an image",
        "a close-up of a {}": "a close-up",
        "a {} on a table": "on a table",
        "a photo of a {} in a room": "a photo in a room",
        "a {} in a field": "in a field",
        "a {} by the window": "by the window",
        "a {} and a person": "a person",
        "a woman with a {}": "a woman",
        "a {} in the morning": "in the morning",
        "a {} in summer": "in summer",
    },
    "style": {
        "{}": "",
        "{} style": "",
        "in {} style": "",
        "a picture in the style of {}": "a picture",
        "a {} picture": "a picture",
        "a {} of a woman": "a woman",
        "a horse, {}": "a horse",
        "a mountain in {} style": "a mountain",
        "a man in the style of {}": "a man",
        "a bowl of fruit on a table, {} style": "a bowl of fruit on a table",
        "a {} drawing of a river": "a drawing of a river",
        "the garden in {} style": "the garden",
    },
    "identity": {
        "{}": "",
        "a photo of {}": "a photo",
        "a picture of {}": "a picture",
        "a portrait of {}": "a portrait",
        "a drawing of {}": "a drawing",
        "a painting of {}": "a painting",
        "an image of {}": "an image",
        "a close-up of {}": "a close-up",
        "{} on a chair": "on a chair",
        "a photo of {} in a room": "a photo in a room",
        "{} in a field": "in a field",
        "{} by the window": "by the window",
        "{} and a person": "a person",
        "a woman with {}": "a woman",
        "{} in the morning": "in the morning",
        "{} in summer": "in summer",
    },
    "unsafe": {
        "{}": "",
        "a {}": "",
        "a photo of {}": "a photo",
        "a photo of a {}": "a photo",
        "a picture of a {}": "a picture",
        "a drawing of a {}": "a drawing",
        "a painting of {}": "a painting",
        "an image of a {}": "an image",
        "a close-up of a {}": "a close-up",
        "someone with a {}": "someone",
        "a {} on a table": "on a table",
        "a photo of a {} in a room": "a photo in a room",
        "a {} in a field": "in a field",
        "a {} by the window": "by the window",
        "a {} and a person": "a person",
        "a {} in the morning": "in the morning",
    },
}

_ADJECTIVES = ("a small", "a big", "an old", "a new", "a broken", "a beautiful")
_PLACES_AND_TIMES = ("on a table", "in a room", "in a field", "by the window", "in the morning", "in summer")
_ACTIONS = ("standing", "moving", "seen from afar", "in the foreground")
CLASS_TEMPLATES: tuple[str, ...] = (
    *(f"{adjective} {{}}" for adjective in _ADJECTIVES),
    *(f"a {{}} {more}" for more in (*_PLACES_AND_TIMES, *_ACTIONS)),
)
"""Templates of members of a class: appearance, place, action."""

OBJECT_PHRASES = ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}")
STYLE_PHRASES = ("{}", "painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}")
"""Names in prompts of published scripts (UCE, OCE), of objects and of styles."""


def templates(kind: Kind) -> tuple[str, ...]:
    """Return the prompt templates of a kind, each with one `{}` for the name; the first is the bare name."""
    return tuple(_TEMPLATES[kind])


def preserved_templates(kind: Kind) -> tuple[str, ...]:
    """Return the templates in which preserved names are held while a concept of `kind` is removed.

    A preserved concept may be of another kind than the removed one, so the plainest templates of an object are added.
    """
    return tuple(dict.fromkeys([*_TEMPLATES[kind], *list(_TEMPLATES["object"])[:4]]))


def fill(template: str, name: str) -> str:
    """Put a name into a template, with the article that it needs ("a {}" and "umbrella": "an umbrella")."""
    if name[:1].casefold() in set("aeiou"):
        template = re.sub(r"\b(a) \{\}", r"\1n {}", template)
    return template.replace("{}", name)


def blank(kind: Kind, template: str) -> str:
    """Return a template of a kind without the concept: "a photo of a {}" gives "a photo"."""
    return _TEMPLATES[kind][template]


def anchored(template: str, concept: Concept) -> str:
    """Return the prompt of a template with the concept replaced by its anchor, or left out where it has none."""
    return fill(template, concept.anchor) if concept.anchor else blank(concept.kind, template)


def anchored_prompts(concept: Concept) -> list[tuple[str, str]]:
    """Return every name of a concept in every template of its kind, each prompt with the anchored one."""
    return [
        (fill(template, name), anchored(template, concept))
        for name in concept.names
        for template in templates(concept.kind)
    ]


def blank_of(template: str) -> str | None:
    """Return a template of any kind without the concept; None for an unknown template."""
    return next((known[template] for known in _TEMPLATES.values() if template in known), None)


def speaks_of(prompt: str, concepts: Sequence[Concept]) -> bool:
    """Return True if a prompt holds a name of one of the concepts, as whole words: "a cat, asleep", not "catfish"."""
    words = normalized(prompt)
    names = normalized_names(*concepts)
    return any(name in words and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words) for name in names)


def words_of(phrase: str) -> str:
    """Return a pattern for a phrase in which runs of spaces do not count; empty for no words."""
    return r"\s+".join(re.escape(word) for word in composed(phrase).split())


_ARTICLE = r"(?:(?:a|an|the)\s+)?"
_JOINING = rf"(?:(?:and|with|of|by)\s+)?{_ARTICLE}"
_HANGING_AT_START = r"(?:and|with|of|by)"  # a prompt may well begin with an article
_HANGING_AT_END = r"(?:and|with|of|by|a|an|the)"


def without_phrases(prompt: str, phrases: Sequence[str]) -> str:
    """Return a prompt with every occurrence of some phrases taken out, whole words only, in any case.

    The article and the joining word before a phrase go with it, and so does what would be left hanging at either end:
    "a photo of a cat on a sofa" without "cat" is "a photo on a sofa", and "of a cat and a dog" is "of a dog". A plural
    is another word; name it if it must go.

    Args:
        prompt: Any text.
        phrases: Phrases to take out, the longest first.

    Raises:
        InputError: A phrase is empty.
    """
    text = prompt = composed(prompt)
    for phrase in sorted(phrases, key=len, reverse=True):
        if not phrase.strip():
            raise InputError(f"without_phrases: expected words, got {phrase!r}. Name what is to be taken out.")
        words = words_of(phrase)
        # The first of a list goes with the "and" after it: what stands before it belongs to the second as well.
        text = re.sub(rf"(?<!\w){_ARTICLE}{words}\s+and\s+", "", text, flags=re.IGNORECASE)
        text = re.sub(rf"(?<!\w){_JOINING}{words}(?!\w)(?:'s)?", " ", text, flags=re.IGNORECASE)
    return text if text == prompt else _tidied(text)


def has_context(prompt: str, names: Sequence[str], contexts: Sequence[str]) -> bool:
    """Return True if a prompt without some names holds one of the contexts, as whole words."""
    rest = without_phrases(prompt, names)
    return any(re.search(rf"(?<!\w){words_of(context)}(?!\w)", rest, re.IGNORECASE) for context in contexts)


def _tidied(text: str) -> str:
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    text = re.sub(r"(?:,\s*){2,}", ", ", text)
    while (shorter := _trimmed(text)) != text:
        text = shorter
    return text


def _trimmed(text: str) -> str:
    text = text.strip(" ,;:")
    return re.sub(rf"^{_HANGING_AT_START}\s+|\s+{_HANGING_AT_END}$|^{_HANGING_AT_END}$", "", text, flags=re.IGNORECASE)


_THINGS = (
    "a tree, a house, a car, a boat, a flower, a bird, an umbrella, a castle, a guitar, a mushroom, "
    "the beach, the forest, the city, the desert, snow, the night sky, a mountain, a river, a bridge, "
    "a road, a garden, a kitchen, a chair, a table, a lamp, a clock, a book, a cup, a loaf of bread, "
    "an apple, a bicycle, a train, an aeroplane, a horse, a fish, a person walking, a crowd, a portrait, "
    "a window, clouds"
)
GENERIC: tuple[str, ...] = tuple(_THINGS.split(", "))
"""Everyday things, places and people: ordinary captions speak of them."""

_OBJECTS = """
cat dog rabbit horse cow sheep pig bird duck fish lion tiger bear elephant mouse frog snake bee tree flower mushroom
apple bread cake pizza house castle church bridge tower car truck bus train bicycle boat ship airplane rocket chair
table bed lamp clock book phone computer camera guitar piano violin umbrella hat shoe bag cup bottle knife hammer
ball doll robot woman man child crowd mountain river beach
"""
_HARMLESS = """
woman man child family crowd portrait swimmer dancer athlete statue street party kitchen beach forest flower dog cat
horse house car food tree
"""
COMMON: dict[Kind, tuple[str, ...]] = {
    "object": tuple(_OBJECTS.split()),
    "style": (
        *("Vincent van Gogh", "Claude Monet", "Paul Cezanne", "Paul Gauguin", "Georges Seurat", "Edgar Degas"),
        *("Pablo Picasso", "Henri Matisse", "Salvador Dali", "Frida Kahlo", "Gustav Klimt", "Edvard Munch"),
        *("Rembrandt", "Johannes Vermeer", "Caravaggio", "Leonardo da Vinci", "Albrecht Durer", "Hieronymus Bosch"),
        *("Katsushika Hokusai", "William Turner", "Caspar David Friedrich", "Edward Hopper", "Andy Warhol"),
        *("watercolor", "oil painting", "pencil sketch", "pixel art", "mosaic", "anime"),
    ),
    "identity": (),
    "unsafe": tuple(_HARMLESS.split()),
}
"""Everyday names of each kind, for models of which no vocabulary is known. No living person's name is suggested."""
