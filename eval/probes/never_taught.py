"""Never taught: the distance of the predictions to those of a gold (after RESTOR, arXiv:2411.00204)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.prompts import fill, templates
from erasure.registry import Exactness
from erasure.sampling import scheduled_prediction

from .base import Access, Aim, MissingError, Models, OneDose, Outcome, Probe, Subject, Suite
from .examples import example_latents

_STEPS, _PLACES = 10, (1, 4, 7)


@dataclass(frozen=True, kw_only=True)
class NeverTaught(Probe):
    """|eps_M - eps_G|^2 / |eps_O - eps_G|^2 on noised images, under the concept's, siblings' and the empty prompt.

    0 is the gold itself, 1 as far from it as the original. Two golds of different seeds show the least that can be
    reached: a second gold's row is that scale.

    Attributes:
        doses: Always 1: the reading has no dose.
        examples: Images, > 0.
    """

    name: ClassVar[str] = "never-taught"
    source: ClassVar[str] = "arXiv:2411.00204"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "inside"
    dose_unit: ClassVar[str] = "reading"
    judged: ClassVar[bool] = False
    reads_gold: ClassVar[bool] = True
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {"examples": 96}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"examples": 2})

    doses: OneDose = (1.0,)
    examples: Annotated[int, Field(ge=1)] = 32

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        if models.gold is None:
            raise MissingError("a model that was never taught the concept: train one and name it by --gold")
        clean = example_latents(models, aim, aim.concept.target, self.examples, seed=aim.seed + 4)
        with models.gold() as pipe:
            predicted = self._predicted(backbone_of(pipe), aim, clean)
        return {"clean": clean, **{f"gold {part}": value for part, value in predicted.items()}}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        predicted = self._predicted(subject.backbone, subject.aim, subject.material["clean"])
        for part, value in predicted.items():
            distance = (value - subject.material[f"gold {part}"]).square().flatten(2).mean(dim=(0, 2))
            yield Outcome(dose=self.doses[0], part=part, values=distance.tolist(), floor=0.0, label="reading")

    @torch.no_grad()
    def _predicted(self, backbone: Backbone, aim: Aim, clean: Tensor) -> dict[str, Tensor]:
        """Return the predictions by prompt, for the same noise in all models: (levels, images, c, h, w)."""
        template = templates(aim.concept.kind)[2]
        prompts = {"target": fill(template, aim.concept.target), "empty": ""}
        if aim.siblings:
            prompts["sibling"] = fill(template, aim.siblings[0])
        read = backbone.encode(list(prompts.values()))
        timesteps = backbone.schedule.timesteps(_STEPS)
        added = torch.randn(clean.shape, generator=torch.Generator().manual_seed(aim.seed + 9)).to(backbone.device)
        levels = []
        for place in _PLACES:
            noisy = backbone.schedule.noised(clean.to(backbone.device), added, timesteps[place])
            rows = [
                scheduled_prediction(backbone, noisy, timesteps[place], read.select([i] * len(clean)))
                for i in range(len(read))
            ]
            levels.append(torch.stack(rows).cpu())
        whole = torch.stack(levels, dim=1)
        return dict(zip(prompts, whole, strict=True))
