"""What a text encoder makes of a whole phrase: the feature that semantic preservation compares."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..backbones.base import Backbone
from ..errors import InputError
from ..losses.semantic import Pooling, pooled_position


def phrase_features(
    backbone: Backbone, ids: Int[Tensor, "n tokens"], pooling: Pooling = "eos"
) -> list[Float[Tensor, "n dim"]]:
    """Return the features of phrases, with gradient, by each text encoder that the model has.

    Of the first encoder it is the state at the end of text, as the denoiser reads it; of a second one its sentence
    vector, which the denoiser reads as well.

    Args:
        backbone: The model.
        ids: As `Backbone.encode_ids` takes them.
        pooling: Where a phrase is read; see `losses.semantic.pooled_position`.

    Raises:
        InputError: The published pooling of a model with two encoders, for which there is none.
    """
    read = backbone.encode_ids(ids)
    if read.pooled is not None and pooling != "eos":
        raise InputError(f"spl_pooling: expected 'eos' for a model with two text encoders, got {pooling!r}.")
    first: Any = backbone.component("text_encoder")
    end = backbone.tokenizers()["text_encoder"].eos_token_id
    at = pooled_position(read.ids, end, pooling).to(read.states.device)
    own = read.states[torch.arange(len(read), device=at.device), at, : first.config.hidden_size]
    return [own] if read.pooled is None else [own, read.pooled]
