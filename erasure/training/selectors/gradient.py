"""Saliency of weights: SURE (arXiv:2410.16454), KLUE (arXiv:2502.19207), SalUn (arXiv:2310.12508), SelFT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...errors import InputError
from ...registry import Exactness
from ..context import TrainingTask
from ..draws.neighbours import nearest_concepts
from ..draws.sensitivity import erasing_gradients
from .base import Selection, Selector


@dataclass(frozen=True, kw_only=True)
class GradientSaliency(Selector):
    """The rows or entries whose erasing gradient is largest.

        score = s(target) - alpha mean_n s(n)

    s is the norm of a row of the mean gradient of |eps(x_t, c) - eps_0(x_t, a)|^2 at noised images of the target
    ("row", as SURE), the size of an entry of it ("entry", SalUn), or of an entry times its weight ("weight-entry",
    SelFT, arXiv:2511.07970). The same score of erasing a preserved name n in the same sentences is taken off (KLUE):
    what the sentences alone share is no knowledge of the target. The largest `share` of all scores of all weights is
    trained; vectors, such as biases, are not.

    Differs from SURE: the rows are chosen once, before the training; theirs anew at each step.

    Attributes:
        kind: "row", "entry" or "weight-entry". Patches take rows alone.
        share: Share of the rows or entries, in (0, 1].
        end: Scores that are trained: the "largest" of all weights together, or the "smallest" of each weight, as in the
            script of ANT (arXiv:2504.12782).
        alpha: Weight of the preserved names' score, >= 0; at 0, or without such names, it is left out.
        neighbours: Number of preserved names that stand for all, the nearest as text, > 0.
        batches: Batches of four noised images for each mean gradient, > 0.
        images: Images of each name, > 0.
        image_steps: Sampling steps of an image, > 0.
    """

    name: ClassVar[str] = "gradient"
    source: ClassVar[str] = "arXiv:2410.16454"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {"batches": 1, "images": 2, "image_steps": 2}

    kind: Literal["row", "entry", "weight-entry"] = "row"
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    end: Literal["largest", "smallest"] = "largest"
    alpha: Annotated[float, Field(ge=0)] = 1.0
    neighbours: Annotated[int, Field(ge=1)] = 8
    batches: Annotated[int, Field(ge=1)] = 8
    images: Annotated[int, Field(ge=1)] = 16
    image_steps: Annotated[int, Field(ge=1)] = 25

    def selected(self, task: TrainingTask) -> Selection:
        scores = self._scores(task, list(task.concepts))
        kept = nearest_concepts(task, self.neighbours)
        if self.alpha and kept:
            others = self._scores(task, kept)
            scores = {name: score - self.alpha * others[name] for name, score in scores.items()}
        if not scores:
            raise InputError("gradient: expected weights with two dimensions, got vectors alone. Train other weights.")
        if self.end == "largest":
            masks = largest(scores, self.share)
        else:
            masks = {name: largest({name: -score}, self.share)[name] for name, score in scores.items()}
        return Selection(names=frozenset(masks), masks=masks)

    def _scores(self, task: TrainingTask, concepts: list[Any]) -> dict[str, Tensor]:
        """Return the scores of each weight, shaped as a mask."""
        gradients = erasing_gradients(
            task, concepts, batches=self.batches, images=self.images, image_steps=self.image_steps
        )
        weights = task.backbone.parameters(gradients.__contains__)
        scores = {}
        for name, gradient in gradients.items():
            if gradient.ndim < 2:
                continue
            match self.kind:
                case "row":
                    scores[name] = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
                case "entry":
                    scores[name] = gradient.abs()
                case "weight-entry":
                    scores[name] = (gradient * weights[name].detach().to(gradient)).abs()
        return scores


def largest(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return masks of the largest share of all scores together, at least one; a weight without any is left out.

    Ties are decided by the order of the weights.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    count = max(1, round(share * len(flat)))
    chosen = torch.zeros_like(flat)
    chosen[flat.argsort(descending=True, stable=True)[:count]] = 1.0
    parts = chosen.split([score.numel() for score in scores.values()])
    masks = {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}
    return {name: mask for name, mask in masks.items() if mask.any()}
