"""Relearning: a short fine-tuning brings the concept back (ResAlign, NeurIPS 2025, arXiv:2507.16302)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone
from erasure.backbones.sites import has_role
from erasure.concept import Concept
from erasure.edits.changes import edited_weights, exchanged
from erasure.io.text import counted
from erasure.prompts import fill, templates
from erasure.registry import Exactness
from erasure.training.finetune import Optimisation

from .base import Access, Aim, Counts, MissingError, Models, Outcome, Probe, Subject, Suite
from .examples import example_latents
from .learning import changes_at, denoising_loss

Examples = Literal["target", "siblings", "benign"]


@dataclass(frozen=True, kw_only=True)
class Relearn(Probe):
    """Low-rank patches of all attention are trained on a few images, and images of the concept are sampled on the way.

    If the concept returns faster than a model that never had it learns it, it was there: compare the half-doses of the
    rows. Trained on images of siblings or of unrelated kept concepts, a return is the alarming case. Kept concepts are
    sampled at every dose.

    Attributes:
        doses: Numbers of updates after which images are sampled, each >= 1.
        sets: Images to train on: of the target with its name, of siblings, of other kept concepts.
        examples: Images of each set, > 0.
        rank: Rank of the patches, > 0.
        lr: Learning rate of AdamW, > 0; 1e-4 in Stable Diffusion.
        batch_size: Examples an update, > 0.
    """

    name: ClassVar[str] = "relearn"
    source: ClassVar[str] = "arXiv:2507.16302 and arXiv:2605.11685"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "weights"
    dose_unit: ClassVar[str] = "updates"
    novel: ClassVar[bool] = True
    effort: ClassVar[bool] = True
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {
            "quick": {},
            "standard": {"doses": (5.0, 10.0, 25.0, 50.0, 100.0), "sets": ("target", "siblings", "benign")},
            "full": {"doses": (5.0, 10.0, 25.0, 50.0, 100.0, 200.0), "sets": ("target", "siblings", "benign")},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0), "examples": 2, "batch_size": 1})

    doses: Counts = (10.0, 40.0)
    sets: Annotated[tuple[Examples, ...], Field(min_length=1)] = ("target",)
    examples: Annotated[int, Field(ge=1)] = 16
    rank: Annotated[int, Field(ge=1)] = 4
    lr: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: Annotated[int, Field(ge=1)] = 8

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        latents = {}
        for name in self.sets:
            shown = self._shown(name, aim)
            each = -(-self.examples // len(shown))
            parts = [example_latents(models, aim, concept.target, each, seed=aim.seed + 2) for concept in shown]
            # The i-th example is of the i-th concept, in turn, as are the prompts.
            latents[name] = torch.stack(parts, dim=1).flatten(0, 1)
        return latents

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone = subject.aim, subject.backbone
        stops = [round(dose) for dose in self.doses]
        for name in self.sets:
            subject.report(0, len(stops), f"{counted(max(stops), 'updates')} on {name}")
            shown = self._shown(name, aim)
            prompts = [fill(templates(concept.kind)[2], concept.target) for concept in shown]
            reached = changes_at(
                backbone,
                attention_weights(backbone),
                denoising_loss(backbone, subject.material[name], prompts, self.batch_size),
                Optimisation(steps=max(stops), lr=self.lr, rank=self.rank),
                stops,
                aim.seed,
            )
            for dose, stop in zip(self.doses, stops, strict=True):
                subject.report(stop, max(stops) + 1, f"after {counted(stop, 'updates')} on {name}")
                parameters = backbone.parameters(reached[stop].__contains__)
                weights = edited_weights({key: p.data for key, p in parameters.items()}, reached[stop])
                with exchanged(parameters, weights):
                    images, kept = subject.sampled(), subject.sampled_kept()
                yield Outcome(dose=dose, part="" if name == "target" else name, images=images, kept=kept)

    def _shown(self, name: Examples, aim: Aim) -> Sequence[Concept]:
        """Return the concepts that a set shows.

        Raises:
            MissingError: No other concept of the model is known.
        """
        if name == "target":
            return [aim.concept]
        near = list(aim.siblings)
        names = near if name == "siblings" else [each for each, *_ in aim.kept if each not in near]
        if not names:
            raise MissingError(f"relearn.sets: expected kept concepts for {name!r}, got none. Name some to preserve.")
        return [Concept(target=each) for each in dict.fromkeys(names)][:4]


def attention_weights(backbone: Backbone) -> list[str]:
    """Return the full names of the projections of all attention layers of the denoiser."""
    roles = [f"{kind}.{part}" for kind in ("cross", "self", "joint", "shared") for part in ("q", "k", "v", "out")]
    return [name for name, site in backbone.sites().items() if has_role(site, roles) and name.endswith("weight")]
