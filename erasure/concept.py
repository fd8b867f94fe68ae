"""Concept: one removal request with its target, anchor and preserved concepts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, cast, get_args

from .errors import InputError, unknown_name

Kind = Literal["object", "style", "identity", "unsafe"]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One removal request.

    Attributes:
        target: Concept to erase, in words: "Van Gogh".
        anchor: Concept that replaces the target; "" is the unconditional prompt.
        preserve: Concepts that must not change, in words.
        kind: Kind of the target; it decides the prompt templates and the measures.
        aliases: Other names of the target, which are erased with it.

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
                raise InputError(f"concept.{where}: expected words, got {word!r}. Name the concept to erase.")
        names = {normalized(name) for name in self.names}
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
            raise InputError(f"concept: expected a target, got {dict(data)!r}. Name the concept to erase.")
        columns: dict[str, Any] = {
            key: tuple(cast("list[object]", value)) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**columns)


@lru_cache(maxsize=4096)  # a joint solve asks for each name once a row
def normalized(phrase: str) -> str:
    """Return the form in which two spellings of one phrase are equal: case and runs of spaces do not count."""
    return " ".join(phrase.split()).casefold()
