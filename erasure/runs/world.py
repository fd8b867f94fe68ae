"""Completion of requests by the knowledge of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import unknown_name
from ..tinyworld import vocabulary

TINYWORLD = "tinyworld"


def kept_beside(targets: Sequence[Any]) -> list[str]:
    """Return all that the tiny world knows beside some of its concepts and the individuals of those."""
    return [
        name
        for name in vocabulary.concepts()
        if name not in targets and vocabulary.INDIVIDUALS.get(name) not in targets
    ]


def completed(concepts: Sequence[Any]) -> list[Any]:
    """Fill in what the tiny world knows of its concepts; leave what is no concept to the check that follows."""
    filled = [
        {**entry, "target": _known(entry["target"])}
        if isinstance(entry, Mapping) and isinstance(entry.get("target"), str)
        else entry
        for entry in concepts
    ]
    kept = kept_beside([entry["target"] for entry in filled if isinstance(entry, Mapping) and "target" in entry])
    return [
        {
            "kind": vocabulary.kind_of(entry["target"]),
            "aliases": list(vocabulary.SYNONYMS.get(entry["target"], ())),
            "preserve": kept,
            **entry,
        }
        if isinstance(entry, Mapping) and isinstance(entry.get("target"), str)
        else entry
        for entry in filled
    ]


def _known(text: str) -> str:
    name = vocabulary.canonical(text)
    if name not in vocabulary.concepts():
        synonyms = [word for words in vocabulary.SYNONYMS.values() for word in words]
        raise unknown_name("concept of the tiny world", text, [*vocabulary.concepts(), *synonyms])
    return name
