"""LECO's objective, and SPM's with anchors in latents (Lyu et al., CVPR 2024, arXiv:2312.16145)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...backbones.conditioning import Conditioning, Stream, concatenate
from ...prompts import GENERIC, speaks_of
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..draws.prompt_pairs import PairedTrajectories, PromptForm
from ..finetune import Loss, uniform
from ..student import Student
from .base import Objective

Anchors = Literal["captions", "gaussian"]
_SIZES = (0.8, 1.2)  # of a random state against the target's, in the code


@dataclass(frozen=True, kw_only=True)
class Anchored(Objective):
    """The frozen model's negatively guided prediction, with predictions for other texts held.

    At latents x that the model under training denoised to a random step with the target's prompt c, with n the
    anchor's prompt and u the unconditional one:

        |eps(x, c) - [eps_0(x, n) - g (eps_0(x, c) - eps_0(x, u))]|^2 + lam mean_k |eps(x, a_k) - eps_0(x, a_k)|^2

    LECO has lam = 0. SPM has n in the place of u. With n = u = "" the first part is ESD's.

    Attributes:
        negative_guidance: Strength of the erasure (g), >= 0.
        away_from: Prediction that the target's is compared with: "unconditional" or the "anchor"'s.
        start_guidance: Scale of classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Steps of the schedule of the partial denoising, > 0.
        trajectory_uses: Updates fed by one partial denoising, > 0; 1 in the sources.
        prompts: "bare" trains on the target's name; "templates" on the name and its aliases in templates.
        anchoring: Weight of the texts that are held (lam), >= 0.
        anchors: Texts that are held: "captions", names that are preserved and everyday things, drawn by their distance
            from the target, as in the paper; or "gaussian", random states of about the target's size, as in the code.
        anchor_count: Number of texts a step (K), > 0.
        anchor_power: Power of a caption's distance 1 - cos in its weight, >= 0.
    """

    name: ClassVar[str] = "anchored"
    source: ClassVar[str] = "arXiv:2312.16145, code 3dd762e"
    exactness: ClassVar[Exactness] = "published"
    quick: ClassVar[Mapping[str, Any]] = {"sample_steps": 3, "anchoring": 1.0}

    negative_guidance: Annotated[float, Ge(0)] = 1.0
    away_from: Literal["unconditional", "anchor"] = "anchor"
    start_guidance: Annotated[float, Ge(1)] = 3.0
    sample_steps: Annotated[int, Ge(1)] = 30
    trajectory_uses: Annotated[int, Ge(1)] = 1
    prompts: PromptForm = "bare"
    anchoring: Annotated[float, Ge(0)] = 1000.0
    anchors: Anchors = "captions"
    anchor_count: Annotated[int, Ge(1)] = 4
    anchor_power: Annotated[float, Ge(0)] = 1.0

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        free = backbone.unconditional()
        paths = PairedTrajectories(
            task,
            self.prompts,
            steps=self.sample_steps,
            guidance_scale=self.start_guidance,
            uses=self.trajectory_uses,
        )
        held = self.held(task, paths.pairs.targets) if self.anchoring else None

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            batch = student(paths.next, generator)
            x, timestep, target, anchor = batch.latents, batch.timestep, batch.target, batch.anchor
            with torch.no_grad():
                read = concatenate([anchor, target, free.expand(len(x))])
                base, bound, empty = scheduled_prediction(backbone, torch.cat([x] * 3), timestep, read).chunk(3)
            against = base if self.away_from == "anchor" else empty
            erased = F.mse_loss(
                student(scheduled_prediction, backbone, x, timestep, target),
                base - self.negative_guidance * (bound - against),
            )
            if held is None:
                return erased
            texts = held(len(x) * self.anchor_count, generator)
            repeated = x.repeat_interleave(self.anchor_count, 0)
            with torch.no_grad():
                frozen = scheduled_prediction(backbone, repeated, timestep, texts)
            kept = F.mse_loss(student(scheduled_prediction, backbone, repeated, timestep, texts), frozen)
            return erased + self.anchoring * kept

        return loss

    def held(self, task: TrainingTask, targets: Conditioning) -> Callable[[int, torch.Generator], Conditioning]:
        """Return the function that draws texts to hold."""
        if self.anchors == "gaussian":
            return lambda n, generator: gaussian_states(targets, n, generator)
        preserved = [name for concept in task.concepts for name in concept.preserve]
        phrases = [each for each in dict.fromkeys([*preserved, *GENERIC]) if not speaks_of(each, task.concepts)]
        texts = task.backbone.encode(phrases)
        likeness = state_cosines(texts, targets).amax(1)
        unlikeness = (1 - likeness).clamp(min=1e-6)
        weights = (unlikeness / unlikeness.max()).pow(self.anchor_power).cpu()  # of a large power not all are zero
        return lambda n, generator: texts.select(
            torch.multinomial(weights, n, replacement=True, generator=generator).tolist()
        )


def state_cosines(texts: Conditioning, others: Conditioning) -> Float[Tensor, "n m"]:
    """Return the cosines of texts with others, over the states of all positions."""
    one, two = (F.normalize(each.states.flatten(1).double().nan_to_num(), dim=1) for each in (texts, others))
    return one @ two.to(one).T


def gaussian_states(targets: Conditioning, n: int, generator: torch.Generator) -> Conditioning:
    """Return random states of about the size of a target's, each taken with the probability 1 - cos of the two."""
    taken: list[Conditioning] = []
    while len(taken) < n:
        target = targets.select([int(uniform(generator) * len(targets))])
        size = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * uniform(generator)
        streams = {}
        for name, stream in target.streams.items():
            drawn = torch.randn(stream.states.shape, generator=generator).to(stream.states)
            states = drawn * (size * stream.states.norm() / drawn.norm())
            streams[name] = Stream(states=states, tokens=stream.tokens)
        random = replace(target, streams=streams)
        if uniform(generator) < 1 - float(state_cosines(random, target)):
            taken.append(random)
    return concatenate(taken)
