"""Locality: what layers add to an image outside the region of a concept's words (Receler, arXiv:2311.17717)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...backbones.attention import AttentionCapture, layer_pixels
from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.schedule import Timestep
from .layer_inputs import inside
from .masked import sides

Latents = Float[Tensor, "n c h w"]


@dataclass(frozen=True, kw_only=True)
class Locality:
    """Region of a concept's words in noisy images, from the attention maps of one size.

    Attributes:
        backbone: Model.
        layers: Full names of the cross-attention layers whose maps are read.
        threshold: Share of the way from the least to the largest value of a map above which a pixel is inside.
    """

    backbone: Backbone
    layers: tuple[str, ...]
    threshold: float

    @classmethod
    def of(cls, backbone: Backbone, pixels: int, threshold: float) -> "Locality":
        """Return the reading of the layers whose number of pixels is nearest to `pixels`."""
        sizes = layer_pixels(backbone)
        nearest = min(sizes.values(), key=lambda size: (abs(size - pixels), size))
        layers = tuple(name for name, size in sizes.items() if size == nearest)
        return cls(backbone=backbone, layers=layers, threshold=threshold)

    @torch.no_grad()
    def masks(
        self, latents: Latents, timestep: Timestep, read: Conditioning, positions: Sequence[Sequence[int]]
    ) -> Bool[Tensor, "n rows columns"]:
        """Return the region of each latent: where the mean map over heads, words and layers is above the threshold.

        Args:
            latents: Noisy latents.
            timestep: Their timestep.
            read: Encoded prompts.
            positions: Positions of the words in each prompt.
        """

        def reduce(_: str, maps: Float[Tensor, "n heads pixels tokens"]) -> Float[Tensor, "n pixels"]:
            mean = maps.mean(1)
            return torch.stack([mean[row][:, list(words)].mean(-1) for row, words in enumerate(positions)])

        capture = AttentionCapture(backbone=self.backbone, layers=self.layers, reduce=reduce, implementation="softmax")
        mean = torch.stack(list(capture.read(latents, timestep, read).values())).mean(0)
        low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
        return (mean >= low + self.threshold * (high - low)).unflatten(1, sides(mean.shape[1], *latents.shape[-2:]))


def written_outside(
    inputs: Mapping[str, Float[Tensor, "n pixels dim"]],
    shifts: Mapping[str, Float[Tensor, "out dim"]],
    masks: Bool[Tensor, "n h w"],
) -> Float[Tensor, ""]:
    """Return the mean square of what changed layers add outside the masks, mean over layers.

        mean_l sum_u (1 - m_u) |shift_l a_u|^2 / (channels sum_u (1 - m_u))

    Args:
        inputs: Input a of each layer.
        shifts: Change of each layer's weight.
        masks: Regions m.
    """
    parts = []
    for name, values in inputs.items():
        outside = ~inside(values, masks)
        added = (values.float() @ shifts[name].T).square().mean(-1)
        parts.append((added * outside).sum() / outside.sum().clamp(min=1))
    return torch.stack(parts).mean()
