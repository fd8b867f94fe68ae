"""ESD's objective (Gandikota et al., ICCV 2023, arXiv:2303.07345)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ...backbones.conditioning import concatenate
from ...concept import Concept
from ...prompts import fill, templates
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..draws.prompt_pairs import PairedTrajectories, PromptForm
from ..finetune import Loss
from ..student import Student
from ..trajectories import Pairing
from .base import Objective

Latents = Float[Tensor, "n c h w"]


@dataclass(frozen=True, kw_only=True)
class Guided(Objective):
    """The frozen model's own negatively guided prediction.

    At each step `denoiser` denoises a start code to a random step t of the schedule with the target's prompt c. There
    the model under training learns (section 4; eps_0 is the frozen model)

        min |eps(x_t, c, t) - [eps_0(x_t, t) - negative_guidance * (eps_0(x_t, c, t) - eps_0(x_t, t))]|^2.

    A model that predicts v is trained on the noise of its prediction, so the formula is the same; one that predicts a
    velocity is trained on the velocity.

    With several concepts each start code draws one, as in the published script.
    Differs from the paper: a concept with an anchor has it in the formula in the place of the unconditional prompt;
    the paper knows only "".

    Attributes:
        negative_guidance: Strength of the erasure (eta in the paper), >= 0.
        start_guidance: Scale of classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Steps of the schedule of the partial denoising, > 0.
        trajectory_uses: Updates fed by one partial denoising, > 0: it runs to the least noisy of as many random steps
            and leaves its latents at each, which makes the denoising cheaper by about as much.
            Differs from the paper: 1 there.
        prompts: "bare" trains on the target's name; "templates" on the name and its aliases in the templates of the
            concept's kind, the anchor's prompt being the same without the concept.
            Differs from the paper: "bare" there.
        denoiser: Model of the partial denoising: the "student", the model under training, as in the paper, or the
            "frozen" one.
        teacher: Model of the goal: the "frozen" one, as in the paper, or the "student", whose goal moves with it
            (EraseAnything's code, arXiv:2412.20413).
        pairing: Timestep of the loss: "exact", that of the latents; "any", a random one for latents that are denoised
            to the end (EraseAnything's code); or "bin", as in the code of 2023: see
            `erasure.training.trajectories.PartialTrajectories`.
    """

    name: ClassVar[str] = "guided"
    source: ClassVar[str] = "arXiv:2303.07345"
    exactness: ClassVar[Exactness] = "published"
    quick: ClassVar[Mapping[str, Any]] = {"sample_steps": 3}

    negative_guidance: Annotated[float, Field(ge=0)] = 1.0
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    prompts: PromptForm = "bare"
    denoiser: Literal["student", "frozen"] = "student"
    teacher: Literal["frozen", "student"] = "frozen"
    pairing: Pairing = "exact"

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        paths = PairedTrajectories(
            task,
            self.prompts,
            steps=self.sample_steps,
            guidance_scale=self.start_guidance,
            uses=self.trajectory_uses,
            pairing=self.pairing,
        )

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            batch = student.by(self.denoiser, paths.next, generator)
            x, timestep, target, anchor = batch.latents, batch.timestep, batch.target, batch.anchor
            with torch.no_grad():
                inputs = torch.cat([x, x]), timestep, concatenate([anchor, target])
                free, bound = student.by(self.teacher, scheduled_prediction, backbone, *inputs).chunk(2)
            predicted = student(scheduled_prediction, backbone, x, timestep, target)
            return F.mse_loss(predicted, negatively_guided(free, bound, self.negative_guidance))

        return loss


def negatively_guided(anchor: Latents, target: Latents, negative_guidance: float) -> Latents:
    """Return the prediction that ESD learns, from the frozen model's for anchor and target."""
    return anchor - negative_guidance * (target - anchor)


def preserved_prompts(concepts: Sequence[Concept], form: PromptForm) -> list[str]:
    """Return the unconditional prompt, then the prompts of what the concepts preserve."""
    preserved = [
        fill(template, word)
        for concept in concepts
        for word in concept.preserve
        for template in (templates(concept.kind) if form == "templates" else ("{}",))
    ]
    return list(dict.fromkeys(["", *preserved]))
