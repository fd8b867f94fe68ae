"""Outputs of cross-attention layers at noised images, as representation objectives compare them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ...backbones.attention import cross_attention_layers, layers_up_to
from ...backbones.conditioning import Conditioning
from ...backbones.layer_readings import layer_outputs, main_directions, word_regions
from ..context import TrainingTask
from ..student import Student
from .noised_images import NoisedDraw, NoisedImages, reread

_AT_ONCE = 16
Features = Mapping[str, Float[Tensor, "n pixels channels"]]


@dataclass(frozen=True, kw_only=True)
class LayerFeatures:
    """Outputs of the cross-attention layers that a training writes to.

    Attributes:
        task: Training.
        layers: Full names of the layers.
    """

    task: TrainingTask
    layers: tuple[str, ...]

    @classmethod
    def of(cls, task: TrainingTask, max_pixels: int | None = None) -> "LayerFeatures":
        """Return the layers that have trained weights, all layers if none has, of at most so many pixels.

        Raises:
            InputError: No layer is so small.
        """
        trained = task.backbone.parameters(task.trained)
        layers = list(cross_attention_layers(task.backbone))
        chosen = [layer for layer in layers if any(name.startswith(f"{layer}.") for name in trained)] or layers
        return cls(task=task, layers=tuple(layers_up_to(task.backbone, max_pixels, chosen)))

    def student(self, student: Student, batch: NoisedDraw, prompts: Conditioning) -> Features:
        """Return the student's outputs, with gradient."""
        backbone = self.task.backbone

        def outputs() -> Features:
            read = reread(student, backbone, prompts)
            return layer_outputs(backbone, self.layers, batch.latents, batch.timesteps, read)

        return student(outputs)

    @torch.no_grad()
    def reference(self, batch: NoisedDraw, prompts: Conditioning) -> Features:
        """Return the reference's outputs."""
        with self.task.reference():
            return layer_outputs(self.task.backbone, self.layers, batch.latents, batch.timesteps, prompts)

    def regions(self, batch: NoisedDraw) -> Mapping[str, Bool[Tensor, "n pixels"]]:
        """Return the pixels of each layer that hold the target; all of them for a style, which is everywhere."""
        words = [prompt.word for prompt in batch.prompts]
        with self.task.reference():
            regions = word_regions(self.task.backbone, self.layers, batch.latents, batch.timesteps, batch.named, words)
        everywhere = torch.tensor([prompt.concept.kind == "style" for prompt in batch.prompts])
        return {layer: region | everywhere.to(region.device)[:, None] for layer, region in regions.items()}

    def in_regions(self, images: NoisedImages) -> dict[str, Float[Tensor, "rows channels"]]:
        """Return the reference's outputs over the pixels that hold the target, of each image once, by layer."""
        generator = torch.Generator().manual_seed(self.task.context.seed)
        rows: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        total = len(images.prompts)
        for start in range(0, total, _AT_ONCE):
            batch = images.noised(range(start, min(start + _AT_ONCE, total)), generator)
            outputs, regions = self.reference(batch, batch.named), self.regions(batch)
            for layer in self.layers:
                rows[layer].append(outputs[layer][regions[layer]])
        return {layer: torch.cat(parts) for layer, parts in rows.items()}


def pixel_mean(features: Float[Tensor, "n pixels channels"]) -> Float[Tensor, "n 1 channels"]:
    """Return the mean over the pixels of each image."""
    return features.mean(1, keepdim=True)


def likeness(
    features: Float[Tensor, "n pixels channels"], reference: Float[Tensor, "n pixels channels"]
) -> Float[Tensor, "n pixels"]:
    """Return the cosine of features and reference at each pixel, both without the reference's mean over pixels."""
    mean = pixel_mean(reference)
    return F.cosine_similarity(features - mean, reference - mean, dim=-1)


class MinorComponents:
    """Projection of each layer's features off their mean and main directions over the target's regions (MCU).

    Args:
        features: Layers.
        images: Images of the targets.
        components: Number of directions to leave out: the mean, then the principal ones; 0 leaves features as they are.
    """

    def __init__(self, features: LayerFeatures, images: NoisedImages, components: int) -> None:
        self._bases: dict[str, Tensor] = {}
        if not components:
            return
        for layer, rows in features.in_regions(images).items():
            self._bases[layer] = main_directions(rows, components)

    def __call__(self, layer: str, values: Float[Tensor, "n pixels channels"]) -> Float[Tensor, "n pixels channels"]:
        """Return the part of features outside the directions."""
        basis = self._bases.get(layer)
        return values if basis is None else values - values @ basis @ basis.T
