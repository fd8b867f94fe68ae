"""The loss that moves attention or predictions for a target towards those for a prompt without it (DUGE's L_U)."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..backbones.attention import AttentionCapture, Reduce, at_least_float32, watched_outputs
from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning, concatenate
from ..backbones.schedule import Timestep
from ..concept import Concept, Kind
from ..losses.attention import map_distance, output_distance
from ..prompts import blank, fill, templates
from ..sampling import SamplingSettings
from .context import FitContext
from .finetune import Loss, below, uniform
from .replay import noised
from .replay_memory import remembered
from .student import Student

Latents = Float[Tensor, "n c h w"]
Match = Literal["maps", "outputs", "noise"]

_PROMPTS: Mapping[Kind, str] = {
    "object": "a photo of a {}",
    "style": "a painting in the style of {}",
    "identity": "a photo of {}",
    "unsafe": "a photo of {}",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetImages:
    """Images of one target with its prompts.

    Attributes:
        latents: Latents of the images.
        prompts: Prompts that name the target.
        blanks: The same prompts without it; one row stands for all.
    """

    latents: Latents
    prompts: Conditioning
    blanks: Conditioning

    @classmethod
    def of(
        cls,
        concept: Concept,
        context: FitContext,
        count: int,
        *,
        sampling: SamplingSettings,
        seed: int,
        paired: bool,
    ) -> "TargetImages":
        """Return images of a concept, made by the original model.

        Args:
            concept: Target.
            context: Surroundings of the fit.
            count: Number of images, > 0.
            sampling: Sampling settings.
            seed: Seed of the first image, >= 0.
            paired: Whether each prompt has images and a blank of its own; else the blank is the empty prompt.
        """
        backbone, pairs = context.backbone, prompt_turns(concept)
        prompts = [image_prompt(concept, i, paired=paired) for i in range(count)]
        images = remembered(context, prompts, sampling=sampling, seed=seed)
        blanks = [blank for _, blank in pairs] if paired else [""]
        # Each by itself, as all results so far were: together, states differ in their last bits.
        encoded = {text: backbone.encode([text]) if text else backbone.unconditional() for text in set(blanks)}
        return cls(
            latents=images.latents,
            prompts=backbone.encode([prompt for prompt, _ in pairs]),
            blanks=concatenate([encoded[text] for text in blanks]),
        )


@dataclass(frozen=True, kw_only=True)
class LayerReading:
    """The part of a pass through the denoiser that the loss compares.

    Attributes:
        backbone: Model.
        match: Compared values: "maps" of attention, "outputs" of its layers, or the "noise" that is predicted.
        layers: Full names of the cross-attention layers that are read.
    """

    backbone: Backbone
    match: Match
    layers: Sequence[str]

    def read(
        self,
        latents: Latents,
        timestep: Timestep,
        conditioning: Conditioning,
        reduce: Reduce = lambda _, values: values,
    ) -> dict[str, Tensor]:
        """Return the reduced values of each layer of a pass; the noise counts as one layer."""
        match self.match:
            case "maps":
                capture = AttentionCapture(
                    backbone=self.backbone, layers=self.layers, reduce=reduce, implementation="softmax"
                )
                with capture:
                    self.backbone.predict(latents, timestep, conditioning)
                return capture.maps
            case "outputs":
                with watched_outputs(self.backbone, self.layers, reduce) as outputs:
                    self.backbone.predict(latents, timestep, conditioning)
                return outputs
            case "noise":
                predicted = self.backbone.predict(latents, timestep, conditioning)
                return {"noise": reduce("noise", at_least_float32(predicted))}

    def distance(
        self, latents: Latents, timestep: Timestep, conditioning: Conditioning, reference: dict[str, Tensor]
    ) -> Float[Tensor, ""]:
        """Return the mean over layers of the distance to the reference, which is dropped layer by layer."""
        measure = {"maps": map_distance, "outputs": output_distance, "noise": F.mse_loss}[self.match]

        def reduce(layer: str, values: Tensor) -> Tensor:
            return measure(values, reference.pop(layer))

        return torch.stack(list(self.read(latents, timestep, conditioning, reduce).values())).mean()


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The loss with its settings.

    Attributes:
        reading: Compared part of a pass.
        context: Surroundings of the fit.
        overshoot: Distance beyond the aim, as a share of the way there from the original model's values for the
            target, >= 0.
        reference: Model of the aim: "prev", at the start of this removal, or "base", before the first.
        batch_size: Images a step, > 0.
        paired: Whether an image is read with the prompt that it was sampled for; else with a random one.
        revisit: Probability of an earlier target, in [0, 1].
    """

    reading: LayerReading
    context: FitContext
    overshoot: float
    reference: Literal["prev", "base"]
    batch_size: int
    paired: bool
    revisit: float

    def loss(self, targets: Sequence[TargetImages], earlier: Sequence[TargetImages] = ()) -> Loss:
        """Return the loss at noised images of a target."""
        backbone = self.context.backbone

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            candidates = earlier if earlier and uniform(generator) < self.revisit else targets
            target = candidates[below(len(candidates), generator)]
            rows = [below(len(target.latents), generator) for _ in range(self.batch_size)]
            noisy, timestep, _ = noised(backbone, target.latents[rows].float().to(backbone.device), generator)
            prompts = rows if self.paired else [below(len(target.prompts), generator) for _ in rows]
            named, blank = (
                each.select([row % len(each) for row in prompts]) for each in (target.prompts, target.blanks)
            )
            aims = self.aims(noisy, timestep, named, blank)
            return student(self.reading.distance, noisy, timestep, named, aims)

        return loss

    @torch.no_grad()
    def aims(self, latents: Latents, timestep: Timestep, named: Conditioning, blank: Conditioning) -> dict[str, Tensor]:
        """Return the aim of each layer; the original model reads both prompts in one pass."""
        frozen = self.context.original if self.reference == "base" else nullcontext
        if not self.overshoot:
            with frozen():
                return self.reading.read(latents, timestep, blank)
        # Always of the original: an overshot model's values for an earlier target lie beyond the blank already, and a
        # step as far again from there would lead back to the target.
        with self.context.original():
            doubled = self.reading.read(torch.cat([latents, latents]), timestep.repeat(2), concatenate([blank, named]))
        pairs = {name: values.chunk(2) for name, values in doubled.items()}
        reference = {name: aim for name, (aim, _) in pairs.items()}
        if self.reference == "prev" and self.context.history.originals:
            reference = self.reading.read(latents, timestep, blank)
        return {name: reference[name] + self.overshoot * (aim - away) for name, (aim, away) in pairs.items()}


def image_prompt(concept: Concept, i: int, *, paired: bool) -> str:
    """Return the prompt of a concept's i-th image; with `paired` its prompts take turns."""
    pairs = prompt_turns(concept)
    return pairs[i % len(pairs)][0] if paired else fill(_PROMPTS[concept.kind], concept.target)


def prompt_turns(concept: Concept) -> list[tuple[str, str]]:
    """Return the prompts that name a concept, each with the prompt without it; names and contexts take turns."""
    names, contexts = concept.names, templates(concept.kind)
    turns = [(names[(i + i // len(contexts)) % len(names)], i) for i in range(len(names) * len(contexts))]
    return [
        (fill(contexts[i % len(contexts)], name), blank(concept.kind, contexts[i % len(contexts)])) for name, i in turns
    ]
