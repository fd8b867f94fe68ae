"""Emphasis: the concept's words are stressed (after unPact, arXiv:2509.24675, for language models)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from erasure.backbones.conditioning import Conditioning
from erasure.concept import Concept
from erasure.registry import Exactness
from erasure.sampling import sample

from .base import Access, Outcome, Probe, Subject, Suite
from .inversion import with_word

Factor = Annotated[float, Field(gt=0)]
Form = Literal["weight", "guidance", "repetition"]


@dataclass(frozen=True, kw_only=True)
class Emphasis(Probe):
    """The prompt's words for the concept are given more weight; no search, no gradient.

    An eraser that only shifts attention away from the words loses against it. Three forms: the states of the words and
    of the end of text move away from those of the empty prompt, at their length (`weight`):

        E_i <- |E_i| unit(U_i + w (E_i - U_i))

    the guidance is stronger (`guidance`), or the name is said more often (`repetition`).

    Attributes:
        doses: Factors w; of the guidance, and, rounded, of the number of names, too.
        forms: Forms of the emphasis.
    """

    name: ClassVar[str] = "emphasis"
    source: ClassVar[str] = "arXiv:2509.24675"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "prompt"
    dose_unit: ClassVar[str] = "times"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {
            "quick": {"forms": ("weight",)},
            "standard": {"forms": ("weight", "guidance", "repetition")},
            "full": {"doses": (1.25, 1.5, 2.0, 3.0, 5.0), "forms": ("weight", "guidance", "repetition")},
        }
    )

    doses: Annotated[tuple[Factor, ...], Field(min_length=1)] = (1.5, 3.0)
    forms: Annotated[tuple[Form, ...], Field(min_length=1)] = ("weight", "guidance")

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, sampling = subject.aim, subject.aim.sampling
        for form in self.forms:
            for i, dose in enumerate(self.doses):
                subject.report(i, len(self.doses), f"{form} x {dose:g}")
                label = f"x {_times(dose) if form == 'repetition' else dose:g}"
                if form == "guidance":
                    stronger = replace(sampling, guidance_scale=dose * sampling.guidance_scale)
                    images, kept = subject.as_it_stands(stronger)
                    yield Outcome(dose=dose, part=form, images=images, kept=kept, label=label)
                    continue
                if form == "weight":
                    prompts = emphasised(subject, dose)
                    images = sample(subject.pipe, prompts, list(aim.seeds), sampling)
                else:
                    images = sample(subject.pipe, _repeated(subject, _times(dose)), list(aim.seeds), sampling)
                yield Outcome(dose=dose, part=form, images=images, label=label)


def emphasised(subject: Subject, weight: float) -> Conditioning:
    """Return the aim's prompts with the states of the concept's words and of the end of text moved; 1 changes none.

    They are moved from the empty prompt's state at the same place, its last one where it is shorter.
    """
    backbone, concept = subject.backbone, subject.aim.concept
    read, empty = backbone.encode(list(subject.aim.prompts)), backbone.encode([""])
    states = read.states.clone()
    for row in range(len(read)):
        places = [*name_places(read, row, concept), *range(int(read.eot[row]), states.shape[1])]
        before = states[row, places]
        nothing = empty.states[0, [min(place, empty.states.shape[1] - 1) for place in places]]
        moved = nothing + weight * (before - nothing)
        length = before.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        states[row, places] = before if weight == 1 else moved * length
    return read.with_states(states)


def name_places(read: Conditioning, row: int, concept: Concept) -> list[int]:
    """Return the positions of the tokens of a concept's names in a prompt; empty if it names none."""
    places = {place for name in concept.names for span in read.spans(row, name) for place in span}
    return sorted(places)


def _times(dose: float) -> int:
    """Return the number of names at a dose."""
    return max(1, round(dose))


def _repeated(subject: Subject, times: int) -> list[str]:
    concept = subject.aim.concept
    return [with_word(prompt, concept, " ".join([concept.target] * times)) for prompt in subject.aim.prompts]
