"""Attention: the words that the denoiser looks at, beside the original's (after SADR, arXiv:2502.14838, and A-STAR)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.attention import AttentionCapture
from erasure.concept import Concept
from erasure.prompts import fill
from erasure.registry import Exactness

from .base import Access, Aim, Models, OneDose, Outcome, Probe, Subject, Suite
from .emphasis import name_places
from .examples import noisy_latents

_STEPS = 10
_PLACES = (1, 3, 5, 7)  # steps of these whose maps are read
_GREW = 0.1  # growth of a head's mass that counts, a share of a pixel's attention


@dataclass(frozen=True, kw_only=True)
class Attention(Probe):
    """Shares of the attention that fall on the concept's words, on the original's trajectories; no sampling.

    `mass` is the mean, over heads, layers and pixels, of the attention to the concept's words in prompts that name it.
    It is scaled by the page to 0 for a model never taught the concept and 1 for the original; every word has some
    attention, so without such a model there is no residue. No mass and a large gain by emphasis mean that the concept
    is hidden, not removed.

    `captured` is a side effect: the share of heads whose mass on the words of the concept, or of its anchor, is larger
    by 0.1 than in the original, in prompts that ask for a kept concept beside it. Such heads no longer read what stays.

    Differs from the paper: no regression on the loss of the kept concept.

    Attributes:
        doses: Always 1: the reading has no dose.
        prompts: Prompts of each part, > 0.
    """

    name: ClassVar[str] = "attention"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "inside"
    dose_unit: ClassVar[str] = "reading"
    judged: ClassVar[bool] = False
    reads_anchor: ClassVar[bool] = True
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {"prompts": 24}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"prompts": 2})

    doses: OneDose = (1.0,)
    prompts: Annotated[int, Field(ge=1)] = 8

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        with models.original() as pipe:
            backbone = backbone_of(pipe)
            alone, beside = (
                noisy_latents(backbone, aim, prompts, steps=_STEPS, places=_PLACES, seed=70)
                for prompts in (self._alone(aim), self._beside(aim))
            )
            masses = head_masses(backbone, self._beside(aim), beside, _watched(aim))
            return {"alone": alone, "beside": beside, "masses": masses}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone = subject.aim, subject.backbone
        subject.report(0, 2, "mass")
        mass = head_masses(backbone, self._alone(aim), subject.material["alone"], [aim.concept])
        yield self._outcome("mass", mass.mean(dim=(0, 2)))
        subject.report(1, 2, "captured")
        masses = head_masses(backbone, self._beside(aim), subject.material["beside"], _watched(aim))
        captured = (masses - subject.material["masses"] > _GREW).float().mean(dim=(0, 2))
        yield self._outcome("captured", captured, side_effect=True)

    def _outcome(self, part: str, values: Float[Tensor, " n"], **further: Any) -> Outcome:
        return Outcome(dose=self.doses[0], part=part, values=values.tolist(), label="reading", **further)

    def _alone(self, aim: Aim) -> list[str]:
        return list(aim.prompts[: self.prompts])

    def _beside(self, aim: Aim) -> list[str]:
        """Return prompts that ask for a kept concept beside the removed one."""
        kept = list(dict.fromkeys([*aim.siblings, *(name for name, *_ in aim.kept)]))
        style = "in the style of {}" if aim.concept.kind == "style" else "and a {}"
        return [f"{fill('a {}', name)} {fill(style, aim.concept.target)}" for name in kept[: self.prompts]]


def _watched(aim: Aim) -> list[Concept]:
    """Return the concept, and its anchor where it has one."""
    return [aim.concept, *([Concept(target=aim.concept.anchor)] if aim.concept.anchor else [])]


@torch.no_grad()
def head_masses(
    backbone: Backbone, prompts: Sequence[str], noisy: Float[Tensor, "steps n c h w"], concepts: Sequence[Concept]
) -> Float[Tensor, "steps n heads"]:
    """Return the share of attention that each head of each layer gives to the words of some concepts, over pixels.

    A prompt in which the model reads none of the words has 0.

    Args:
        backbone: Model.
        prompts: Prompts.
        noisy: Latents at each step, one a prompt.
        concepts: Concepts whose names count.
    """
    read = backbone.encode(prompts)
    timesteps = backbone.schedule.timesteps(_STEPS)
    columns: list[Tensor] = []
    for row in range(len(prompts)):
        places = sorted({place for concept in concepts for place in name_places(read, row, concept)})
        by_step = []
        for place, latents in zip(_PLACES, noisy, strict=True):
            # With no word to look at, any token is watched for the number of heads.
            capture = AttentionCapture(backbone=backbone, tokens=places or [0])
            maps = capture.read(latents[row : row + 1], timesteps[place], read.select([row]))
            heads = torch.cat([layer[0].sum(dim=-1).mean(dim=-1) for layer in maps.values()]).cpu()
            by_step.append(heads if places else torch.zeros_like(heads))
        columns.append(torch.stack(by_step))
    return torch.stack(columns, dim=1)
