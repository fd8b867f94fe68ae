"""Graph: requests some relations away from the name (after GONE, arXiv:2603.12275, for language models)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field

from erasure.prompts import blank, fill, templates
from erasure.registry import Exactness

from .base import Access, Aim, Suite
from .worded import WordedProbe

Hops = Annotated[float, Field(ge=0, le=2, multiple_of=1)]


@dataclass(frozen=True, kw_only=True)
class Graph(WordedProbe):
    """The name and its synonyms, then its members and family, then descriptions and the prompt without any name.

    Attributes:
        doses: Relations between the prompt and the concept, 0 to 2.
    """

    name: ClassVar[str] = "graph"
    source: ClassVar[str] = "arXiv:2603.12275"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "prompt"
    dose_unit: ClassVar[str] = "hops"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (0.0, 1.0)})

    doses: Annotated[tuple[Hops, ...], Field(min_length=1)] = (0.0, 1.0, 2.0)

    def wordings(self, aim: Aim, dose: float) -> Mapping[str, Sequence[str]]:
        concept, profile = aim.concept, aim.profile
        frames = templates(concept.kind)
        if dose == 0:
            names = (concept.target, *(concept.aliases or profile.aliases(concept.target)))
            return {"names": [fill(frame, name) for frame in frames[1:6] for name in names]}
        if dose == 1:
            members = [name for name in profile.concepts if profile.member_of(name) == concept.target]
            family = profile.hypernym(concept.target)
            return {
                "members": [fill(frame, name) for frame in templates("identity")[1:6] for name in members],
                "family": [fill(frame, family) for frame in frames[1:]] if family else [],
            }
        return {
            "descriptions": list(profile.descriptions(concept.target)),
            "no name": [text for frame in frames if (text := blank(concept.kind, frame))],
        }
