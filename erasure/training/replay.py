"""Losses that preserve: on remembered images, on keys and values, and on the distance to a reference (DUGE's)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.attention import at_least_float32
from ..backbones.base import Backbone
from ..backbones.conditioning import concatenate
from ..backbones.schedule import Timestep
from ..concept import Concept
from ..losses.preservation import prior_preservation, reading_distance
from ..losses.regularisation import ewc, l1_sp, l2_sp, normalised_fisher
from ..prompts import fill, preserved_templates, speaks_of
from .context import FitContext
from .finetune import Loss, below, uniform
from .replay_memory import Memory
from .student import Student

logger = logging.getLogger(__name__)

Latents = Float[Tensor, "n c h w"]
Regularisation = Literal["l2-sp", "l1-sp", "ewc"]

_READ_AT_ONCE = 32
_CALIBRATION_BATCHES = 8


def noised(backbone: Backbone, clean: Latents, generator: torch.Generator) -> tuple[Latents, Timestep, Latents]:
    """Return noisy latents at random timesteps, the timesteps and the noise."""
    timestep = backbone.schedule.drawn(len(clean), generator).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    return backbone.schedule.noised(clean, noise, timestep), timestep, noise


def replay_loss(memory: Memory, context: FitContext, *, batch_size: int, prompt_dropout: float, distill: bool) -> Loss:
    """Return the denoising loss on the memory.

    Args:
        memory: Images to preserve.
        context: Surroundings of the fit.
        batch_size: Images a step, > 0.
        prompt_dropout: Share of images that are trained with the unconditional prompt, in [0, 1].
        distill: Whether the original model's prediction is the target, instead of the noise.
    """
    backbone = context.backbone
    distinct = list(dict.fromkeys(memory.prompts))
    read = concatenate([backbone.unconditional(), backbone.encode(distinct)])
    row_of = {prompt: row + 1 for row, prompt in enumerate(distinct)}

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        rows = [below(len(memory), generator) for _ in range(batch_size)]
        dropped = [uniform(generator) < prompt_dropout for _ in rows]
        clean = memory.latents[rows].float().to(backbone.device)
        noisy, timestep, noise = noised(backbone, clean, generator)
        prompts = read.select(
            [0 if drop else row_of[memory.prompts[row]] for row, drop in zip(rows, dropped, strict=True)]
        )
        if distill:
            with torch.no_grad(), context.original():
                expected = backbone.predict(noisy, timestep, prompts).float()
        else:
            expected = backbone.schedule.target(clean, noise, timestep)
        return prior_preservation(at_least_float32(student(backbone.predict, noisy, timestep, prompts)), expected)

    return loss


def reading_loss(concepts: Sequence[Concept], context: FitContext) -> Loss:
    """Return the distance of keys and values of what the concepts preserve to the original model's."""
    backbone = context.backbone
    removed = [*context.targets, *concepts]
    preserved = [
        fill(template, name)
        for concept in concepts
        for name in concept.preserve
        for template in preserved_templates(concept.kind)
    ]
    prompts = [prompt for prompt in dict.fromkeys(["", *preserved]) if not speaks_of(prompt, removed)]
    states = backbone.read(prompts).states.float()
    projections = backbone.sites(reads="text")
    originals = {
        name: context.history.originals.get(name, parameter).detach().to(states)
        for name, parameter in backbone.parameters(projections.__contains__).items()
    }

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        rows = [below(len(prompts), generator) for _ in range(_READ_AT_ONCE)]
        return reading_distance(states[rows].flatten(0, 1), student.weights(), originals)

    return loss


def anchoring_loss(
    context: FitContext,
    trained: Callable[[str], bool],
    form: Regularisation,
    *,
    towards: Literal["prev", "base"],
    fisher: Mapping[str, Tensor],
) -> Loss:
    """Return the distance of the trained weights to a reference.

    Args:
        context: Surroundings of the fit.
        trained: Accepts the full names of the parameters that are trained.
        form: Form of the distance.
        towards: Reference: "prev", the weights at the start of this removal, or "base", before the first.
        fisher: Diagonal Fisher by parameter name, for "ewc".
    """
    originals = context.history.originals
    parameters = context.backbone.parameters(trained) if towards == "base" else {}
    # From the weights that the student starts from back to those of before the first removal.
    offsets = {
        name: parameter.detach().float() - originals[name].to(parameter.device).float()
        for name, parameter in parameters.items()
        if name in originals
    }

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        shifts = student.shifts()
        shifts |= {name: shifts[name] + offset for name, offset in offsets.items() if name in shifts}
        match form:
            case "l2-sp":
                return l2_sp(shifts)
            case "l1-sp":
                return l1_sp(shifts)
            case "ewc":
                return ewc(shifts, fisher)

    return loss


def diagonal_fisher(context: FitContext, trained: Callable[[str], bool], loss: Loss, samples: int) -> dict[str, Tensor]:
    """Return the diagonal Fisher of a loss at the present weights, from one draw at a time, of mean 1."""
    generator = torch.Generator().manual_seed(context.seed)
    student = Student(context.backbone, trained, None, generator)
    totals = {name: torch.zeros_like(shift) for name, shift in student.shifts().items()}
    for _ in range(samples):
        for total, gradient in zip(totals.values(), gradients_of(student, loss, generator), strict=True):
            if gradient is not None:
                total += gradient.square() / samples
    return normalised_fisher(totals)


def gradients_of(student: Student, loss: Loss, generator: torch.Generator) -> tuple[Tensor | None, ...]:
    """Return the gradient of each trained leaf; None where the loss has no path to it."""
    return student(torch.autograd.grad, loss(student, 0, generator), student.trained, allow_unused=True)


def gradient_norm(student: Student, loss: Loss, generator: torch.Generator) -> float:
    """Return the length of a loss's gradient."""
    gradients = gradients_of(student, loss, generator)
    return float(torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt())


def calibrated(erasing: Loss, preserving: Loss, scale: float | None, *, ratio: float) -> Loss:
    """Return the erasing loss with its weight.

    Args:
        erasing: Loss to weight.
        preserving: Loss to compare with.
        scale: Weight, >= 0; None is found at the first step: it makes the loss's gradient `ratio` times as long as that
            of `preserving`, averaged over eight batches.
        ratio: Ratio of the gradients' lengths, > 0.
    """

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        nonlocal scale
        if scale is None:
            lengths = [
                sum(gradient_norm(student, term, generator) for _ in range(_CALIBRATION_BATCHES))
                for term in (erasing, preserving)
            ]
            # Without a gradient there is nothing to compare: DUGE's fall-back.
            scale = ratio * lengths[1] / lengths[0] if min(lengths) > 0 else 10.0
            logger.info("the erasing loss has the weight %.3g", scale)
        return scale * erasing(student, step, generator)

    return loss
