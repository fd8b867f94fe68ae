"""Inversion: a new word that calls the concept (Pham et al., ICLR 2024, arXiv:2308.01508)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from erasure.concept import Concept
from erasure.edits.tokens import NewToken, mean_row, moved_tokens, table_name, tokens_added
from erasure.io.text import counted
from erasure.prompts import fill, templates, words_of
from erasure.registry import Exactness
from erasure.sampling import sample
from erasure.training.finetune import Optimisation

from .base import Access, Aim, Counts, Models, Outcome, Probe, Subject, Suite
from .examples import example_latents
from .learning import changes_at, denoising_loss

WORD = "<inverted>"


@dataclass(frozen=True, kw_only=True)
class Inversion(Probe):
    """One vector in the place of a word is trained until the model denoises images of the concept best.

    The weights stay as they are. A model that still carries the concept has a vector that calls it and finds it fast;
    another must encode the images, which is slower and carries over less: hence the learning curve beside a model never
    taught it, and judgement on other prompts and seeds. The vector passes through the text encoder (token level).

    Differs from the published code: the step size is the optimiser's own, not multiplied by the batch; the row alone is
    decayed.

    Attributes:
        doses: Numbers of updates after which images are sampled, each >= 1.
        examples: Images of the concept to learn from, > 0.
        lr: Learning rate of AdamW, > 0; 5e-3 in Stable Diffusion.
        batch_size: Examples an update, > 0.
        start: Word that the vector starts from; "" is the family's word, or "image" without one.
    """

    name: ClassVar[str] = "inversion"
    source: ClassVar[str] = "arXiv:2308.01508"
    exactness: ClassVar[Exactness] = "published"
    access: ClassVar[Access] = "gradient"
    dose_unit: ClassVar[str] = "updates"
    novel: ClassVar[bool] = True
    effort: ClassVar[bool] = True
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {
            "quick": {},
            "standard": {"doses": (25.0, 50.0, 100.0, 200.0, 400.0), "examples": 64},
            "full": {"doses": (25.0, 50.0, 100.0, 200.0, 400.0, 1000.0), "examples": 64},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0), "examples": 2, "batch_size": 1})

    doses: Counts = (20.0, 80.0)
    examples: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 5e-3
    batch_size: Annotated[int, Field(ge=1)] = 8
    start: str = ""

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        return {"clean": example_latents(models, aim, aim.concept.target, self.examples, seed=aim.seed + 1)}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone = subject.aim, subject.backbone
        start = self.start or aim.profile.hypernym(aim.concept.target) or "image"
        token = NewToken(text=WORD, rows={part: mean_row(backbone, part, start) for part in backbone.tokenizers()})
        tables = {part: table_name(backbone, part) for part in backbone.tokenizers()}
        stops = [round(dose) for dose in self.doses]
        sentences = [fill(template, WORD) for template in templates(aim.concept.kind)[2:6]]
        subject.report(0, len(self.doses), counted(max(stops), "updates"))
        with tokens_added(subject.pipe, [token]):
            reached = changes_at(
                backbone,
                (),
                denoising_loss(backbone, subject.material["clean"], sentences, self.batch_size),
                Optimisation(steps=max(stops), lr=self.lr, last_rows=dict.fromkeys(tables.values(), 1)),
                stops,
                aim.seed,
            )
        prompts = [with_word(prompt, aim.concept, WORD) for prompt in aim.prompts]
        for i, (dose, stop) in enumerate(zip(self.doses, stops, strict=True)):
            subject.report(i, len(self.doses), f"after {counted(stop, 'updates')}")
            learned = moved_tokens([token], {part: reached[stop][table] for part, table in tables.items()})
            with tokens_added(subject.pipe, learned):
                yield Outcome(dose=dose, images=sample(subject.pipe, prompts, list(aim.seeds), aim.sampling))


def with_word(prompt: str, concept: Concept, word: str) -> str:
    """Return a prompt with a word in the place of a concept's name; the plainest prompt if it names none."""
    for name in sorted(concept.names, key=len, reverse=True):
        changed, n = re.subn(rf"(?<!\w){words_of(name)}(?!\w)", word, prompt, flags=re.IGNORECASE)
        if n:
            return changed
    return fill(templates(concept.kind)[2], word)
