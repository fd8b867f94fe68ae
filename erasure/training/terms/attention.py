"""A-STAR's retention across models, reconstructed from arXiv:2306.14544."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.attention import MapCapture
from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.loaded import unwrapped
from ...concept import Concept
from ...guidance.a_star import AStarLoss
from ...guidance.map_reading import MapReading, Named
from ...losses.attention import regions, retention
from ...prompts import fill, templates
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Loss, below
from ..student import Student
from ..trajectories import POOL_SIZE, TrajectoryPoints, trajectory_points
from .base import Term

_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class AttentionRetention(Term):
    """A-STAR's retention (eq. 3, which is across time) across models.

        L_keep = sum_n  1 - sum min(A_theta^n, B_0^n) / sum (A_theta^n + B_0^n)

    A_theta^n is the map of a preserved name n under the weights being trained, B_0^n the region that the reference
    model's map holds, at the same latents, timestep and prompt. Prompts name n alone or beside the target. Maps depend
    on queries, keys and all that lies below them; the values of the last layers get no gradient.
    """

    name: ClassVar[str] = "attention"
    source: ClassVar[str] = "arXiv:2306.14544"
    exactness: ClassVar[Exactness] = "reconstructed"

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        prompts = _prompts(task.concepts)
        if not prompts:
            raise self.nothing_to_preserve()
        maps = _NameMaps(backbone)
        pool: list[tuple[TrajectoryPoints, list[Named], Float[Tensor, "n rows columns"]]] = []

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            if not pool:
                chosen = [prompts[below(len(prompts), generator)] for _ in range(POOL_SIZE)]
                with task.reference(), torch.no_grad():
                    points = trajectory_points(backbone, [prompt for prompt, _ in chosen], generator)
                    names = [name for _, name in chosen] * (len(points) // len(chosen))
                    named = [_named(points.conditioning, row, name) for row, name in enumerate(names)]
                    pool.append((points, named, maps.regions(points, named)))
            points, named, masks = pool[0]
            rows = [below(len(named), generator) for _ in range(_BATCH)]
            return retention(student(maps, points, named, rows)[:, None], masks[rows][:, None]).mean()

        return loss


class _NameMaps:
    """Attention maps of one name a prompt."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._reading: MapReading = AStarLoss()
        self._denoiser = unwrapped(backbone.denoiser)
        self._capture: MapCapture = self._reading.capture(self._denoiser)

    def __call__(
        self, points: TrajectoryPoints, named: Sequence[Named], rows: Sequence[int]
    ) -> Float[Tensor, "n rows columns"]:
        """Return the map of each row's preserved name, with gradient."""
        latents, timesteps, read = points.select(rows)
        maps = self._capture.read_from(lambda: self._backbone.predict(latents, timesteps, read))
        attention = self._reading.attention(self._capture, maps, latents, self._denoiser)
        return torch.stack(
            [self._reading.concept_maps(one, named[row])[0] for one, row in zip(attention, rows, strict=True)]
        )

    def regions(self, points: TrajectoryPoints, named: Sequence[Named]) -> Float[Tensor, "n rows columns"]:
        """Return the region that the attention of the model in force holds, for each row's preserved name."""
        rows = range(len(named))
        parts = [rows[start : start + POOL_SIZE] for start in range(0, len(rows), POOL_SIZE)]
        maps = torch.cat([self(points, named, part) for part in parts])
        return regions(maps).to(maps.dtype)


def _prompts(concepts: Sequence[Concept]) -> list[tuple[str, str]]:
    """Return prompts, each with the preserved name in it: by itself and beside the concept."""
    return [
        (fill(template, words), kept)
        for concept in concepts
        for kept in concept.preserve
        for template in templates(concept.kind)
        for words in (kept, f"{concept.target} and {kept}")
    ]


def _named(read: Conditioning, row: int, name: str) -> Named:
    return Named(names=(name,), positions=[read.word_positions(row, name)], end=int(read.eot[row]))
