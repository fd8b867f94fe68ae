"""GEM's objective: nearer to the anchor's prediction than to the original one (arXiv:2606.00140)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.conditioning import concatenate
from ...losses.contrastive import nearer_to
from ...registry import Exactness
from ..context import TrainingTask
from ..draws.prompt_pairs import PairedLatents, PairedTrajectories, PromptForm
from ..finetune import Loss
from ..student import Student
from .base import Objective


@dataclass(frozen=True, kw_only=True)
class Nearer(Objective):
    """A hinge that asks for predictions nearer to the anchor's than to the original ones, along sampled paths.

    One update samples the first steps S of a trajectory of the target's prompt c, and at each of them, with the
    anchor's prompt a and the frozen model v_0,

        L = (scale / |S|) sum_S max(|v(x_t, c) - v_0(x_t, a)| - repel |v(x_t, c) - v_0(x_t, c)| + margin m_t, 0)

    with m_t = |v_0(x_t, a) - v_0(x_t, c)| and Euclidean norms of whole latents; see `losses.contrastive.nearer_to`. v
    is the denoiser's own output: a velocity, v or the noise.

    Attributes:
        repel: Weight of the distance to the original prediction (eta), in [0, 1]; at 1 the loss is 0 half way to the
            anchor, at 0 it is the plain distance to the anchor.
        margin: Share of the whole way that is asked for beyond that (ours), in [0, 1].
        scale: Factor of the loss (gamma), > 0.
        until: Share of the sampler's steps that a path has, in (0, 1].
        sample_steps: Steps of the sampler, > 0.
        start_guidance: Scale of classifier-free guidance of the paths, >= 1.
        prompts: "bare" trains on the target's name, "templates" on the name and its aliases in the templates of the
            concept's kind.
        denoiser: Model of the paths: the "student", the model under training, or the "frozen" one.
    """

    name: ClassVar[str] = "nearer"
    source: ClassVar[str] = "arXiv:2606.00140"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {"sample_steps": 4, "until": 0.25, "start_guidance": 1.0}

    repel: Annotated[float, Field(ge=0, le=1)] = 1.0
    margin: Annotated[float, Field(ge=0, le=1)] = 0.0
    scale: Annotated[float, Field(gt=0)] = 100.0
    until: Annotated[float, Field(gt=0, le=1)] = 0.4
    sample_steps: Annotated[int, Field(ge=1)] = 28
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    prompts: PromptForm = "bare"
    denoiser: Literal["student", "frozen"] = "student"

    @property
    def path_steps(self) -> int:
        """Number of steps of a path; 11 of 28 at 0.4."""
        return max(1, round(self.until * self.sample_steps))

    def loss(self, task: TrainingTask) -> Loss:
        backbone, steps = task.backbone, self.path_steps
        paths = PairedTrajectories(
            task,
            self.prompts,
            steps=self.sample_steps,
            guidance_scale=self.start_guidance,
            stops=lambda _: range(steps),
        )

        def at_step(student: Student, batch: PairedLatents) -> Float[Tensor, ""]:
            x, timestep, target, anchor = batch.latents, batch.timestep, batch.target, batch.anchor
            with torch.no_grad():
                both = backbone.predict(torch.cat([x, x]), timestep, concatenate([anchor, target])).float()
            predicted = student.recomputed(backbone.predict, x, timestep, target).float()
            return nearer_to(predicted, *both.chunk(2), repel=self.repel, margin=self.margin).mean()

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            path = [student.by(self.denoiser, paths.next, generator) for _ in range(steps)]
            return self.scale * torch.stack([at_step(student, batch) for batch in path]).mean()

        return loss
