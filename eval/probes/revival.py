"""The revival probe: attention guidance that strengthens concepts, applied to a removed concept.

A-STAR (Agarwal et al., ICCV 2023, arXiv:2306.14544) and Attend-and-Excite (Chefer et al., arXiv:2301.13826) raise a
concept's attention during sampling. A concept that an eraser only weakened comes back.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.conditioning import being_read
from erasure.concept import Concept
from erasure.guidance.a_star import AStarLoss
from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.guidance.attention import AttentionGuidance
from erasure.guidance.map_reading import Named
from erasure.prompts import fill, templates
from erasure.registry import Exactness

from ..attacks.base import Goal, Tokens
from .base import Access, SampledProbe, Suite


@dataclass(frozen=True, kw_only=True)
class Revival(SampledProbe):
    """Names the concept in the prompt and pulls its attention into the middle of the image at every step.

    The prompt is the goal's if it contains one of the concept's names, else a template of its kind. During sampling the
    latents follow the gradient of A-STAR's retention loss with the central square as the mask, or of
    Attend-and-Excite's loss. No prompt is searched for; the probe uses the denoiser's gradient.

    Attributes:
        method: Guidance whose loss is followed: "a-star" or "attend-and-excite".
        alpha: Step size of the update, >= 0.
        share: Side of the central square for "a-star", as a share of the image's side, in (0, 1].
    """

    name: ClassVar[str] = "revival"
    source: ClassVar[str] = "ours, built on arXiv:2306.14544 and arXiv:2301.13826"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "sampler"
    dose: ClassVar[str] = "alpha"
    dose_unit: ClassVar[str] = "step size of the update"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"full": {}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0)})

    doses: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (5.0, 20.0, 80.0)
    method: Literal["a-star", "attend-and-excite"] = "a-star"
    alpha: Annotated[float, Field(ge=0)] = 20.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def prompt_ids(self, backbone: Backbone, goal: Goal) -> Int[Tensor, "m tokens"]:
        vocabulary = Tokens(backbone)
        ids = backbone.encode([goal.prompt]).ids
        if not name_positions(ids[0].tolist(), goal.concept, vocabulary):
            ids = backbone.encode([fill(templates(goal.concept.kind)[0], goal.concept.target)]).ids
        return ids

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline, goal: Goal) -> Generator[None]:
        vocabulary, ends = Tokens(backbone_of(pipe)), pipe.tokenizer.eos_token_id
        edge = round(64 * (1 - self.share) / 2)
        mask = torch.zeros(64, 64)
        mask[edge : 64 - edge, edge : 64 - edge] = 1

        def named() -> list[Named]:
            states = being_read()
            rows: Sequence[list[int]] = [] if states is None else states.ids.tolist()
            return [self._named(row, row.index(ends), goal.concept, vocabulary, mask) for row in rows]

        with self._loss(goal.concept).guiding(pipe, named):
            yield

    def _named(self, ids: list[int], end: int, concept: Concept, vocabulary: Tokens, mask: Tensor) -> Named:
        positions = name_positions(ids, concept, vocabulary)
        if not positions:
            return Named(names=(), positions=(), end=end)
        return Named(names=(concept.target,), positions=[positions], end=end, layout={0: mask})

    def _loss(self, concept: Concept) -> AttentionGuidance:
        if self.method == "a-star":
            return AStarLoss(alpha=self.alpha, segregation_scale=0.0)
        return AttendAndExcite(concepts=(concept.target,), alpha=self.alpha)


def name_positions(ids: Sequence[int], concept: Concept, vocabulary: Tokens) -> list[int]:
    """Return the positions of the tokens of a concept's names in a row of ids."""
    positions: set[int] = set()
    for name in concept.names:
        tokens = vocabulary.of(name)
        for start in range(len(ids)):
            if tokens and list(ids[start : start + len(tokens)]) == tokens:
                positions.update(range(start, start + len(tokens)))
    return sorted(positions)
