"""Maps of the concepts of a prompt, read off a denoiser's attention to its text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import ceil
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.attention import MapCapture, Maps, average_maps
from ..backbones.joint_attention import is_joint
from ..backbones.map_layers import downsampling_of, map_layers
from ..errors import InputError
from ..losses.attention import competing, smoothed
from .batches import Latents

ConceptMaps = Float[Tensor, "k h w"]
Positions = Sequence[Sequence[int]]
"""The token positions of each concept of one prompt."""

Normalisation = Literal["softmax_100", "raw", "max", "sum"]


@dataclass(frozen=True, kw_only=True)
class Named:
    """Positions of the concepts of one prompt.

    Attributes:
        names: Names of the concepts that the prompt holds.
        positions: Token positions of each.
        end: Position of the first end-of-text token.
        start: Position of the first token of the prompt.
        layout: A mask for each concept that was given one, by the concept's place in `positions`: (height, width) in
            [0, 1], of any size.
    """

    names: tuple[str, ...]
    positions: Positions
    end: int
    start: int = 1
    layout: Mapping[int, Float[Tensor, "h w"]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MapReading:
    """Settings of the concepts' maps, made of a denoiser's cross-attention.

    The defaults are those of the public code of Attend-and-Excite; A-STAR's paper is silent about them. Where image and
    text attend to both, a probability is the share of a pixel's attention to the text, and the tokens of all text
    encoders take part.

    Attributes:
        normalise: Normalisation of the probabilities: "softmax_100", tokens compete at each pixel by a softmax over a
            hundred times their probability; "raw"; "max", each map divided by its own maximum; "sum", by its sum.
        competitors: With "softmax_100", which tokens take part: "all" but the start and the last position, as for
            Stable Diffusion 1.x, or those of the "prompt", as for 2.x.
        smooth: Blur the maps over 3 x 3 pixels.
        layers: Names of the denoiser's cross-attention layers, all of one size, such as
            "up_blocks.1.attentions.0.transformer_blocks.0.…"; None takes those of `map_layers`.
    """

    normalise: Normalisation = "softmax_100"
    competitors: Literal["all", "prompt"] = "all"
    smooth: bool = True
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value, allowed = getattr(self, item.name), getattr(item.type, "__args__", ())
            if getattr(item.type, "__origin__", None) is Literal and value not in allowed:
                raise InputError(
                    f"{item.name}: expected {' or '.join(map(repr, allowed))}, got {value!r}. Choose one of these."
                )

    def require(self, name: str, holds: bool, expected: str, advice: str) -> None:
        """Raise InputError where a setting's value does not hold."""
        if not holds:
            raise InputError(f"{name}: expected {expected}, got {getattr(self, name)!r}. Note that {advice}.")

    def require_shares(self, name: str) -> None:
        """Raise InputError where a setting is not a part of the schedule, from and to which share of it."""
        start, end = getattr(self, name)
        self.require(name, 0 <= start <= end <= 1, "two shares from 0 to 1, in order", "(0, 1) is all steps")

    def capture(self, denoiser: nn.Module, part: Callable[[Tensor], Tensor] = lambda maps: maps) -> MapCapture:
        """Return a capture of the maps of every token, mean over heads, of some of the batch's rows."""
        layers = map_layers(denoiser, self.layers)
        joint = any(map(is_joint, layers.values()))

        def reduce(_: str, maps: Maps) -> Tensor:
            rows = part(maps)
            return (_share(rows) if joint else rows).mean(1, keepdim=True)

        return MapCapture(layers=layers, reduce=reduce, implementation="softmax")

    def attention(
        self, capture: MapCapture, maps: Mapping[str, Tensor], latents: Latents, denoiser: nn.Module
    ) -> Float[Tensor, "batch tokens rows columns"]:
        """Return the captured maps of a pass over latents of this size, mean over layers."""
        downsampling = downsampling_of(next(iter(capture.layers)), denoiser)
        height, width = (ceil(side / downsampling) for side in latents.shape[-2:])
        return average_maps(maps, height, width)

    def concept_maps(self, attention: Float[Tensor, "tokens h w"], named: Named) -> ConceptMaps:
        """Return the map of each concept from the probabilities of every token: the mean of its tokens'."""
        if self.normalise == "softmax_100":
            last = named.end if self.competitors == "prompt" else len(attention) - 1
            first = named.start
            attention = torch.cat([attention[:first], competing(attention[None, first:last])[0]])  # so positions stay
        maps = torch.stack([attention[list(positions)].mean(0) for positions in named.positions])
        if self.smooth:
            maps = smoothed(maps[None])[0]
        match self.normalise:
            case "max":
                return maps / maps.detach().amax((1, 2), keepdim=True)
            case "sum":
                return maps / maps.sum((1, 2), keepdim=True)
            case _:
                return maps


def _share(maps: Maps) -> Maps:
    """Return the share of each token in a pixel's attention to the text."""
    return maps / maps.sum(-1, keepdim=True).clamp(min=1e-12)
