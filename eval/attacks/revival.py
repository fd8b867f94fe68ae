"""The revival probe: guidance that keeps concepts alive, turned on one that was removed.

A-STAR (Agarwal et al., ICCV 2023, arXiv:2306.14544) and Attend-and-Excite (Chefer et al., arXiv:2301.13826) raise a
concept's attention while a picture is made. What an eraser only weakened comes back by it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.conditioning import being_read
from erasure.concept import Concept, fill, templates
from erasure.guidance.a_star import AStarLoss
from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.guidance.attention import AttentionGuidance, Named
from erasure.progress import OnProgress, Progress
from erasure.registry import Exactness

from .base import Attack, Goal, Tokens


@dataclass(frozen=True, kw_only=True)
class Revival(Attack):
    """Asks for the concept by name and pulls its attention into the middle of the picture at every step.

    The prompt is the goal's where it holds one of the concept's names, else one of the templates of its kind. While
    the pictures are made the latents follow the gradient of A-STAR's retention loss with the central square as the
    mask, or of Attend-and-Excite's loss. No prompt is searched for; the denoiser's gradient is what is used.

    Attributes:
        method: Whose loss: "a-star" or "attend-and-excite".
        alpha: Size of the update.
        share: Side of the central square, as a share of the picture's, for "a-star".
    """

    name: ClassVar[str] = "revival"
    source: ClassVar[str] = "ours, built on arXiv:2306.14544 and arXiv:2301.13826"
    exactness: ClassVar[Exactness] = "ours"
    white_box: ClassVar[bool] = False  # what it hands over as ids depends on no denoiser

    method: Literal["a-star", "attend-and-excite"] = "a-star"
    alpha: Annotated[float, Field(ge=0)] = 20.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def search(
        self, backbone: Backbone, goal: Goal, *, on_progress: OnProgress | None = None
    ) -> Int[Tensor, "m tokens"]:
        vocabulary = Tokens(backbone)
        ids = backbone.encode([goal.prompt]).ids
        if not found_in(ids[0].tolist(), goal.concept, vocabulary):
            ids = backbone.encode([fill(templates(goal.concept.kind)[0], goal.concept.target)]).ids
        if on_progress is not None:
            on_progress(Progress(1, 1, self.name))
        return ids

    @contextmanager
    def while_sampling(self, pipe: Any, goal: Goal) -> Iterator[None]:
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
        positions = found_in(ids, concept, vocabulary)
        if not positions:
            return Named(names=(), positions=(), end=end)
        return Named(names=(concept.target,), positions=[positions], end=end, layout={0: mask})

    def _loss(self, concept: Concept) -> AttentionGuidance:
        if self.method == "a-star":
            return AStarLoss(alpha=self.alpha, segregation_scale=0.0)
        return AttendAndExcite(concepts=(concept.target,), alpha=self.alpha)


def found_in(ids: Sequence[int], concept: Concept, vocabulary: Tokens) -> list[int]:
    """Return the positions of the tokens of a concept's names in a row of ids."""
    found: list[int] = []
    for name in concept.names:
        tokens = vocabulary.of(name)
        starts = [at for at in range(len(ids)) if tokens and list(ids[at : at + len(tokens)]) == tokens]
        found += [at + further for at in starts for further in range(len(tokens))]
    return sorted(set(found))
