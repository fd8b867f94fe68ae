"""SADR, selective attention-drift restriction (arXiv:2502.14838)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.attention import AttentionCapture, layers_up_to
from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.schedule import Timestep
from ...registry import Exactness
from ..context import TrainingTask
from ..draws.neighbours import kept_beside
from ..finetune import Loss, below
from ..student import Student
from ..trajectories import POOL_SIZE, Latents, TrajectoryPoints, trajectory_points
from .base import Term

_BATCH = 4
Maps = Mapping[str, Float[Tensor, "n heads pixels tokens"]]


@dataclass(frozen=True, kw_only=True)
class Drift(Term):
    """Heads that look more at the erased words than any did before are held to their former attention.

        top = max_{h, u} A_0[h, u, words];   head h is restricted if max_u A[h, u, words] > top
        L = mean over layers, images, heads and pixels of KL(A_0[h, u, :] || A[h, u, :]) of restricted heads, else 0

    A[h, u, :] is the attention of head h and pixel u over tokens, A_0 the reference's, at latents of the reference's
    trajectories for prompts that name a preserved concept beside the target or its anchor; `words` are the tokens of
    the latter and those after the end of text. In nats; 0 at the reference.

    Differs from the paper: all pixels ask, where only its last token does.

    Attributes:
        hinge: Whether only such heads are restricted; else all are.
        max_pixels: Largest layer, in pixels, > 0.
    """

    name: ClassVar[str] = "drift"
    source: ClassVar[str] = "arXiv:2502.14838"
    exactness: ClassVar[Exactness] = "reconstructed"

    hinge: bool = True
    max_pixels: Annotated[int, Field(ge=1)] = 256

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        prompts = [prompt for concept in task.concepts for prompt in kept_beside(concept)]
        if not prompts:
            raise self.nothing_to_preserve()
        layers = layers_up_to(backbone, self.max_pixels)
        pool: list[tuple[TrajectoryPoints, list[str]]] = []

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            if not pool:
                chosen = [prompts[below(len(prompts), generator)] for _ in range(POOL_SIZE)]
                with task.reference():
                    points = trajectory_points(backbone, [prompt for prompt, _, _ in chosen], generator)
                pool.append((points, [other for _, _, other in chosen]))
            points, others = pool[0]
            rows = [below(len(points), generator) for _ in range(_BATCH)]
            batch = points.select(rows)
            masks = torch.stack([_words(points.conditioning, row, others[row % len(others)]) for row in rows])
            with torch.no_grad(), task.reference():
                before = attention_maps(backbone, layers, *batch)
            now = student(attention_maps, backbone, layers, *batch)
            parts = [drifted(now[name], before[name], masks, hinge=self.hinge) for name in before]
            return torch.stack(parts).mean()

        return loss


def attention_maps(
    backbone: Backbone, layers: list[str], latents: Latents, timestep: Timestep, prompts: Conditioning
) -> dict[str, Float[Tensor, "n heads pixels tokens"]]:
    """Return the maps of some layers over every token, with gradient; the pass ends at the last of them."""
    capture = AttentionCapture(backbone=backbone, layers=layers, reduce=lambda _, maps: maps, implementation="softmax")
    return capture.read(latents, timestep, prompts)


def drifted(
    now: Float[Tensor, "n heads pixels tokens"],
    before: Float[Tensor, "n heads pixels tokens"],
    words: Tensor,
    *,
    hinge: bool = True,
) -> Float[Tensor, ""]:
    """Return one layer's part of the loss.

    Args:
        now: Attention under training.
        before: Attention of the reference.
        words: Whether a token counts as erased, for each image (n, tokens).
        hinge: Whether only heads beyond the reference's top are restricted.
    """
    marked = words[:, None, None, : now.shape[-1]].to(now.device)
    top = (before * marked).amax((1, 2, 3))
    peaks = (now.detach() * marked).amax((2, 3))
    restricted = peaks > top[:, None] if hinge else torch.ones_like(peaks, dtype=torch.bool)
    divergence = (before * (before.clamp(min=1e-12).log() - now.clamp(min=1e-12).log())).sum(-1)
    return (divergence * restricted[:, :, None]).mean()


def _words(read: Conditioning, row: int, name: str) -> Tensor:
    """Return a mask of the tokens of a name and of all after the end of text."""
    mask = torch.zeros(read.states.shape[1], dtype=torch.bool)
    mask[read.word_positions(row, name)] = True
    mask[int(read.eot[row]) + 1 : read.ids.shape[1]] = True
    return mask
