"""Attention of the image to some words of its prompt, in all layers that read text."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...backbones.attention import AttentionCapture
from ...backbones.base import Backbone
from ...backbones.conditioning import TEXT, Conditioning, spans_in
from ...backbones.schedule import Timestep
from ...errors import InputError
from ..trajectories import Latents

Mass = dict[str, Float[Tensor, "n heads pixels"]]
"""Attention to the words by layer, a probability: of all tokens of a joint sequence, the image's own among them."""


def word_mass(
    backbone: Backbone,
    layers: Sequence[str],
    latents: Latents,
    timestep: Timestep,
    read: Conditioning,
    names: Sequence[str],
) -> Mass:
    """Return the attention of each image to all tokens of its name, with gradient; the pass ends at the last layer.

    Args:
        backbone: Model.
        layers: Full names of layers that attend to text.
        latents: Noisy latents.
        timestep: Their timestep, one for all or one each.
        read: Prompts, each with its name in it.
        names: Name for each prompt.
    """
    columns, counted = word_columns(read, names)
    maps = AttentionCapture(backbone=backbone, layers=layers, tokens=columns).read(latents, timestep, read)
    return {layer: (each * counted.to(each)[:, None, None]).sum(-1) for layer, each in maps.items()}


def word_columns(read: Conditioning, names: Sequence[str]) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Return the positions of each prompt's name in the text stream, in every encoder, and 1 where one counts.

    Rows with fewer positions repeat their first, which does not count again.
    """
    positions = [_positions(read, row, name) for row, name in enumerate(names)]
    longest = max(map(len, positions))
    columns = [places + places[:1] * (longest - len(places)) for places in positions]
    counted = [[1.0] * len(places) + [0.0] * (longest - len(places)) for places in positions]
    return torch.tensor(columns), torch.tensor(counted)


def _positions(read: Conditioning, row: int, name: str) -> list[int]:
    positions, start = [], 0
    for tokens, states in read.streams[TEXT].parts():
        spans = spans_in(read.prompts[row], tokens.offsets[row], name)
        positions += [start + position for span in spans for position in span]
        start += states.shape[1]
    if not positions:
        raise InputError(
            f"phrase: expected words of the prompt {read.prompts[row]!r}, got {name!r}. Use a shorter prompt."
        )
    return positions
