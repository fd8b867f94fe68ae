"""ANT's objective: the guidance kept early in the denoising and reversed late (arXiv:2504.12782)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ...backbones.conditioning import Conditioning, concatenate
from ...errors import InputError
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..draws.prompt_pairs import PairedTrajectories, PromptForm
from ..finetune import Loss
from ..student import Student
from ..trajectories import Latents
from .base import Objective


@dataclass(frozen=True, kw_only=True)
class Reversal(Objective):
    """The guidance towards the target, kept early in the denoising and reversed late.

    One trajectory of the target's prompt c is left at an early step, x_e, and at a late one, x_l. With
    d = eps_0(x, c) - eps_0(x, a), eta = `negative_guidance` and the empty prompt 0,

        L = |eps(x_l, c) - (eps_0(x_l, a) - eta d_l)|^2 + hold_weight |eps(x_l, 0) - eps_0(x_l, 0)|^2
          + keep_weight {|eps(x_e, c) - (eps_0(x_e, a) + eta d_e)|^2 + hold_weight |eps(x_e, 0) - eps_0(x_e, 0)|^2}.

    The early steps fix the layout, which stays; the late ones fix the identity, which bends away. The empty prompt is
    held everywhere, so that the reference of the guidance does not drift.

    A model that predicts a velocity is trained on the velocity.

    Differs from the paper: a concept with an anchor has it as a; the paper knows only "".

    Attributes:
        keep_until: Share of the sampler's steps that are early, in [0, 1]; 0 is ESD with the empty prompt held.
        order: "early" keeps the noisy steps, as the paper and the trainer of several concepts do; "late" keeps the last
            ones and reverses before them, as the released trainer of one concept does.
        keep_weight: Weight of the early part (a_1), >= 0.
        hold_weight: Weight of the empty prompt (a_2), >= 0.
        negative_guidance: Strength of both (eta), >= -1.
        prediction_guidance: Scale g of the guidance inside the predictions, > 0: eps(x, c) becomes
            eps(x, a) + g (eps(x, c) - eps(x, a)), and d becomes g d.
        start_guidance: Scale of classifier-free guidance of the trajectories, >= 1.
        sample_steps: Steps of their schedule, > 0.
        trajectory_uses: Updates fed by one trajectory, > 0.
        prompts: "bare" trains on the target's name, "templates" on the name and its aliases in the templates of the
            concept's kind.
        denoiser: Model of the trajectories: the "student", the model under training, or the "frozen" one.
    """

    name: ClassVar[str] = "reversal"
    source: ClassVar[str] = "arXiv:2504.12782"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {"sample_steps": 3, "keep_until": 0.4, "start_guidance": 1.0}

    keep_until: Annotated[float, Field(ge=0, le=1)] = 0.14
    order: Literal["early", "late"] = "early"
    keep_weight: Annotated[float, Field(ge=0)] = 1.0
    hold_weight: Annotated[float, Field(ge=0)] = 0.5
    negative_guidance: Annotated[float, Field(ge=-1)] = 1.0
    prediction_guidance: Annotated[float, Field(gt=0)] = 1.0
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    prompts: PromptForm = "bare"
    denoiser: Literal["student", "frozen"] = "student"

    def __post_init__(self) -> None:
        if not self._parts:
            raise InputError(
                f"reversal.keep_weight: expected a weight > 0 where every step is kept, got {self.keep_weight!r}."
                " Lower keep_until."
            )

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        blank = backbone.unconditional()
        paths = PairedTrajectories(
            task,
            self.prompts,
            steps=self.sample_steps,
            guidance_scale=self.start_guidance,
            stops=self.stops,
        )

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            total = torch.zeros((), device=backbone.device)
            for keeps in self._parts:
                batch = student.by(self.denoiser, paths.next, generator)
                x, timestep = batch.latents, batch.timestep
                reads = batch.target, batch.anchor, blank.expand(len(batch.rows))

                def predictions(
                    x: Latents = x, timestep: Tensor = timestep, reads: tuple[Conditioning, ...] = reads
                ) -> tuple[Latents, ...]:
                    read = concatenate(list(reads))
                    repeated = x.repeat(len(reads), 1, 1, 1)
                    return scheduled_prediction(backbone, repeated, timestep, read).chunk(len(reads))

                with torch.no_grad():
                    frozen_predictions = predictions()
                part = self._part(student(predictions), frozen_predictions, keeps=keeps)
                total = total + (self.keep_weight * part if keeps else part)
            return total

        return loss

    @property
    def kept_steps(self) -> int:
        """Number of steps whose guidance is kept."""
        return round(self.keep_until * self.sample_steps)

    @property
    def _parts(self) -> tuple[bool, ...]:
        """The parts of the loss, True for what is kept."""
        kept = (True,) if self.kept_steps and self.keep_weight else ()
        return kept if self.kept_steps == self.sample_steps else (*kept, False)

    def stops(self, generator: torch.Generator) -> list[int]:
        """Return the steps of one trajectory: as many of each part as there are updates, in turn."""
        kept, steps = self.kept_steps, self.sample_steps
        early, late = range(kept), range(kept, steps)
        if self.order == "late":
            early, late = range(steps - kept, steps), range(steps - kept)
        drawn = []
        for keeps in self._parts:
            steps_of_part = early if keeps else late
            order = torch.randperm(len(steps_of_part), generator=generator).tolist()
            drawn.append([steps_of_part[i] for i in order[: self.trajectory_uses]])
        return [step for pair in zip(*drawn, strict=False) for step in pair]

    def _part(self, student: tuple[Latents, ...], frozen: tuple[Latents, ...], *, keeps: bool) -> Float[Tensor, ""]:
        """Return one part of the loss, from the predictions for target, anchor and empty prompt."""
        target, anchor, blank = student
        frozen_target, frozen_anchor, frozen_blank = frozen
        scale = self.prediction_guidance
        predicted = target if scale == 1 else anchor + scale * (target - anchor)
        sign = 1.0 if keeps else -1.0
        goal = frozen_anchor + sign * self.negative_guidance * scale * (frozen_target - frozen_anchor)
        return F.mse_loss(predicted, goal) + self.hold_weight * F.mse_loss(blank, frozen_blank)
