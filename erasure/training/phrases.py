"""Phrases about the class of a concept, and the text features that semantic preservation compares."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbones.base import Backbone
from ..concept import Concept
from ..errors import InputError
from ..losses.semantic import Pooling, pooled_position
from ..prompts import CLASS_TEMPLATES, fill, speaks_of, templates


def phrase_features(
    backbone: Backbone, ids: Int[Tensor, "n tokens"], pooling: Pooling = "eos"
) -> list[Float[Tensor, "n dim"]]:
    """Return the features of phrases, with gradient, by each text encoder that the model has.

    The feature of the first encoder is the state at the end of text, as the denoiser reads it; that of a second one is
    its pooled output, which the denoiser reads as well.

    Args:
        backbone: The model.
        ids: Token ids, as for `Backbone.encode_ids`.
        pooling: Position of the feature in a phrase; see `losses.semantic.pooled_position`. With "published" an added
            word also enters without its position.

    Raises:
        InputError: The published pooling of a model with two encoders, for which there is none.
    """
    end = cast("int", backbone.tokenizers()["text_encoder"].eos_token_id)
    with _without_positions(backbone, end) if pooling == "published" else nullcontext():
        read = backbone.encode_ids(ids)
    if read.pooled is not None and pooling != "eos":
        raise InputError(f"spl_pooling: expected 'eos' for a model with two text encoders, got {pooling!r}.")
    first = cast("PreTrainedModel", backbone.component("text_encoder"))
    positions = pooled_position(read.ids, end, pooling).to(read.states.device)
    pooled = read.states[torch.arange(len(read), device=positions.device), positions, : first.config.hidden_size]
    return [pooled] if read.pooled is None else [pooled, read.pooled]


@contextmanager
def _without_positions(backbone: Backbone, end: int) -> Generator[None]:
    """Leave out the position of added words, whose ids are beyond the end of text, in what the encoder reads."""
    encoder = cast("PreTrainedModel", backbone.component("text_encoder"))
    table = encoder.get_input_embeddings()
    embeddings = next(module for module in encoder.modules() if any(part is table for part in module.children()))

    def bare(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], placed: Tensor) -> Tensor:
        ids = args[0] if args else kwargs["input_ids"]
        return torch.where((ids > end)[..., None], table(ids), placed)

    handle = embeddings.register_forward_hook(bare, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def class_phrases(concepts: Sequence[Concept]) -> list[str]:
    """Return phrases about the classes that must stay: the anchor of each concept and the names that it preserves.

    Each name stands in the templates of its kind, with adjectives, in places and doing things. Phrases that speak of
    a removed concept are left out.
    """
    phrases: list[str] = []
    for concept in concepts:
        names: list[str] = [name for name in (concept.anchor, *concept.preserve) if name]
        for name in dict.fromkeys(names):
            phrases += [fill(template, name) for template in templates(concept.kind)]
            if concept.kind in ("object", "identity"):
                phrases += [fill(template, name) for template in CLASS_TEMPLATES]
    return [phrase for phrase in dict.fromkeys(phrases) if not speaks_of(phrase, concepts)]
