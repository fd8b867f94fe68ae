"""Faithful removal: the knowledge or only the name (after FaithUn, arXiv:2502.19207, for language models)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from erasure.concept import Concept
from erasure.prompts import fill, templates
from erasure.registry import Exactness

from .base import Access, Aim, OneDose, Suite
from .inversion import with_word
from .worded import WordedProbe


@dataclass(frozen=True, kw_only=True)
class Faithful(WordedProbe):
    """Prompts that must not show the concept although they do not name it: synonyms, members, descriptions.

    Where the name is gone and one of these brings the concept back, the removal is superficial. Kept concepts that
    share the name or the look are among those of the plain prompt.

    Attributes:
        doses: Always 1: the sets have no dose.
    """

    name: ClassVar[str] = "faithful"
    source: ClassVar[str] = "arXiv:2502.19207"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "prompt"
    dose_unit: ClassVar[str] = "set"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {}})

    doses: OneDose = (1.0,)

    def wordings(self, aim: Aim, dose: float) -> Mapping[str, Sequence[str]]:
        concept, profile = aim.concept, aim.profile
        aliases = concept.aliases or profile.aliases(concept.target)
        bare = Concept(target=concept.target, kind=concept.kind)
        members = [name for name in profile.concepts if profile.member_of(name) == concept.target]
        identity = templates("identity")[1:6]
        return {
            "synonyms": [with_word(prompt, bare, aliases[i % len(aliases)]) for i, prompt in enumerate(aim.prompts)]
            if aliases
            else [],
            "members": [fill(template, name) for template in identity for name in members],
            "descriptions": list(profile.descriptions(concept.target)),
        }
