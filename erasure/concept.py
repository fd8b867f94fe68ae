"""Concept: one removal request with its target, anchor and preserved concepts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

from .arguments import checks_arguments
from .errors import InputError, unknown_name
from .io.text import check_unicode, composed, names_something, without_invisible
from .registry import with_settings

Kind = Literal["object", "style", "identity", "unsafe"]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One removal request.

    Its texts are kept in Unicode's composed form (NFC), without blanks around them and invisible characters in them. A
    name that comes twice, but for case or form, counts once.

    Attributes:
        target: Concept to erase, in words: "Van Gogh".
        anchor: Concept that replaces the target; "" is the unconditional prompt.
        preserve: Concepts that must not change, in words.
        kind: Kind of the target; it decides the prompt templates and the measures.
        aliases: Other names of the target, which are erased with it.

    Raises:
        InputError: A field is of another type; a text but the anchor is empty, or one has no word and no emoji; a name
            is also preserved or its own anchor; or a text cannot be encoded.
        UnknownNameError: The kind is none of the four.
    """

    target: str
    anchor: str = ""
    preserve: tuple[str, ...] = ()
    kind: Kind = "object"
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name("kind of concept", str(self.kind), get_args(Kind))
        for field in ("target", "anchor"):
            object.__setattr__(self, field, _checked_text(getattr(self, field), field))
        for field in ("preserve", "aliases"):
            object.__setattr__(self, field, tuple(_checked_texts(getattr(self, field), field)))
        for field in ("target", "anchor", "preserve", "aliases"):
            value: str | tuple[str, ...] = getattr(self, field)
            for text in (value,) if isinstance(value, str) else value:
                if not names_something(text) and (text or field != "anchor"):
                    raise InputError(f"concept.{field}: expected words, got {text!r}. Name a concept, or leave it out.")
        # Alone, a second row of a state would double its weight.
        object.__setattr__(self, "aliases", _distinct(self.names)[1:])
        object.__setattr__(self, "preserve", _distinct(self.preserve))
        names = normalized_names(self)
        for kept in self.preserve:
            if normalized(kept) in names:
                raise InputError(
                    f"concept.preserve: expected a kept concept, got {kept!r}, a name of the target {self.target!r}."
                    " Take it out of one of the two."
                )
        if normalized(self.anchor) in names:
            raise InputError(
                f"concept.anchor: expected another concept than the target, got {self.anchor!r}."
                " Give the concept that replaces the target."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The target and its aliases."""
        return (self.target, *self.aliases)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "preserve": list(self.preserve), "aliases": list(self.aliases)}

    @classmethod
    @checks_arguments
    def from_json(cls, data: Mapping[str, Any]) -> "Concept":
        """Return the concept whose `as_json` gave `data`.

        Raises:
            UnknownNameError: A key is no field of a concept.
            InputError: There is no target, or a value is of the wrong type.
        """
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise unknown_name("concept field", key, known)
        if "target" not in data:
            raise InputError(f"concept: expected a target, got {dict(data)!r}. Name the concept to erase.")
        return with_settings(cls, data, where="concept.")


@lru_cache(maxsize=4096)  # a joint solve asks for each name once a row
def normalized(phrase: str) -> str:
    """Return the form in which two spellings of one phrase are equal.

    Case, runs of spaces, invisible characters, and the composition of accents do not count. Letters are lowered one by
    one, as tokenizers do: what they tell apart, "Strasse" from "Straße" or "fish" from a word with the ligature "ﬁ",
    are two names.
    """
    words = " ".join(without_invisible(phrase, joining=True).split())
    return words.lower() if words.isascii() else composed("".join(map(str.lower, composed(words))))


def normalized_names(*concepts: "Concept") -> set[str]:
    """Return all names of some concepts, aliases included, in their normalized form."""
    return {normalized(name) for concept in concepts for name in concept.names}


@checks_arguments
def distinct(requests: Sequence[Concept]) -> tuple[Concept, ...]:
    """Return the requests without those that an earlier one repeats: names are compared, aliases included.

    Raises:
        InputError: Two requests share a name and are not the same.
    """
    kept: list[Concept] = []
    owner: dict[str, int] = {}
    for i, concept in enumerate(requests):
        names = normalized_names(concept)
        shared = {owner[name] for name in names if name in owner}
        if not shared:
            kept.append(concept)
            owner |= dict.fromkeys(names, i)
        elif not names.issubset(owner) or any(
            normalized(requests[j].anchor) != normalized(concept.anchor) for j in shared
        ):
            raise InputError(
                f"concepts.{i}: expected a concept that no other request names, got {concept.target!r}, which shares a"
                f" name with concepts.{min(shared)} and differs in names or anchor. Leave one of them out."
            )
    return tuple(kept)


def _checked_texts(texts: Iterable[str], field: str) -> Iterable[str]:
    """Return texts as `_checked_text` does.

    Raises:
        InputError: It is no collection of texts.
    """
    if not isinstance(texts, tuple | list | set | frozenset):
        remedy = f" Write ({texts!r},)." if isinstance(texts, str) else " Write them in parentheses, with commas."
        raise InputError(f"concept.{field}: expected a tuple of texts, got {texts!r}.{remedy}")
    ordered = texts if isinstance(texts, tuple | list) else sorted(texts, key=str)
    return (_checked_text(text, field) for text in ordered)


def _checked_text(text: object, field: str) -> str:
    """Return a text in its composed form, without blanks around it and invisible characters in it.

    Raises:
        InputError: It is no text, or holds half of a surrogate pair, which no file and no tokenizer takes.
    """
    if not isinstance(text, str):
        raise InputError(f"concept.{field}: expected a text, got {text!r}. Write it in quotes.")
    check_unicode(text, f"concept.{field}")
    # a line break or a tab is a space to tokenizers, and a new line to whoever reads the name
    return composed("".join(" " if sign.isspace() else sign for sign in without_invisible(text)).strip())


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, of several spellings of one the first."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(normalized(name), name)
    return tuple(first.values())
