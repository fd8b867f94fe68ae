"""Combined requests: the concept beside a kept one (after BLUR, arXiv:2506.15699, for language models)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from erasure.prompts import fill
from erasure.registry import Exactness

from .base import Access, Aim, OneDose, Suite
from .worded import WordedProbe

_OBJECT_FORMS = ("{one} and a {{}}", "{one}. a {{}}", "{one} next to a {{}}", "a {{}} beside {one}")
_STYLE_FORMS = ("{one}, {{}}", "{one}. {{}}", "{one} in {{}} style")


@dataclass(frozen=True, kw_only=True)
class Combined(WordedProbe):
    """The concept is asked for together with a kept one, as a pair, in a sentence of its own, or in a blended clause.

    Attributes:
        doses: Always 1: the forms have no dose.
    """

    name: ClassVar[str] = "combined"
    source: ClassVar[str] = "arXiv:2506.15699"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "prompt"
    dose_unit: ClassVar[str] = "form"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {}})

    doses: OneDose = (1.0,)

    def wordings(self, aim: Aim, dose: float) -> Mapping[str, Sequence[str]]:
        kept = [name for name in dict.fromkeys(name for name, *_ in aim.kept) if name not in aim.siblings]
        things = [fill("a {}", name) for name in kept if aim.profile.kind(name) in ("object", None)]
        forms = _STYLE_FORMS if aim.concept.kind == "style" else _OBJECT_FORMS
        return {"": [fill(form.format(one=one), aim.concept.target) for one in things for form in forms]}
