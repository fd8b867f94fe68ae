"""Denoising loss on latents of images, for probes that train something on examples of a concept."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from erasure.backbones import Backbone
from erasure.edits import DenseChange, LowRankChange
from erasure.sampling import noise
from erasure.training.finetune import Loss, Optimisation, finetune
from erasure.training.student import Student


@dataclass(frozen=True, kw_only=True)
class NoisedBatch:
    """A batch of a denoiser's training.

    Attributes:
        rows: Index of each example.
        noisy: Noised latents.
        timesteps: Timestep of each.
        target: Prediction that the schedule asks for.
    """

    rows: Int[Tensor, " batch"]
    noisy: Float[Tensor, "batch c h w"]
    timesteps: Tensor
    target: Float[Tensor, "batch c h w"]

    @classmethod
    def drawn(
        cls, backbone: Backbone, latents: Float[Tensor, "n c h w"], size: int, generator: torch.Generator
    ) -> "NoisedBatch":
        """Draw examples, noise and timesteps, in this order."""
        rows = torch.randint(len(latents), (size,), generator=generator)
        clean = latents[rows].to(backbone.device)
        added = noise([generator] * size, (*clean.shape[1:],)).to(clean)  # type: ignore[arg-type]
        timesteps = backbone.schedule.drawn(size, generator).to(clean.device)
        return cls(
            rows=rows,
            noisy=backbone.schedule.noised(clean, added, timesteps),
            timesteps=timesteps,
            target=backbone.schedule.target(clean, added, timesteps),
        )


Changes = Mapping[str, DenseChange | LowRankChange]


def denoising_loss(
    backbone: Backbone, latents: Float[Tensor, "n c h w"], prompts: Sequence[str], batch_size: int
) -> Loss:
    """Return the loss of the denoiser's training on clean latents, the i-th under the i-th prompt.

    The prompts are encoded inside the student, so that a word under training gets its gradient.

    Args:
        backbone: Model.
        latents: Clean latents of the examples.
        prompts: Prompt of each, in turn if there are fewer.
        batch_size: Examples a step, > 0.
    """
    ids = backbone.encode(list(prompts)).ids

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        batch = NoisedBatch.drawn(backbone, latents, batch_size, generator)
        read = ids[(batch.rows % len(ids)).to(ids.device)]
        predicted = student(lambda: backbone.predict(batch.noisy, batch.timesteps, backbone.encode_ids(read)))
        return F.mse_loss(predicted.float(), batch.target)

    return loss


def changes_at(
    backbone: Backbone, which: Sequence[str], loss: Loss, optimisation: Optimisation, stops: Sequence[int], seed: int
) -> dict[int, Changes]:
    """Return the changes of the weights after some numbers of steps of one training.

    Args:
        backbone: Model; left as it was.
        which: Full names of the parameters to train.
        loss: Loss.
        optimisation: Settings of the training; its number of steps is the last stop.
        stops: Numbers of steps, each >= 1.
        seed: Seed of the training, >= 0.
    """
    reached: dict[int, Changes] = {}

    def keep(student: Student, done: int) -> bool:
        if done in stops:
            reached[done] = copy.deepcopy(student.changes())  # which share memory with the weights under training
        return False

    last = finetune(backbone, set(which).__contains__, loss, optimisation, stop=keep, seed=seed)
    return {**reached, optimisation.steps: last}
