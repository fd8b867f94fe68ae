"""Transformer blocks of CLIP's text encoders: where the first one lies, and what the last one gives."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from .base import Backbone
from .conditioning import PADDED

ClipText = CLIPTextModel | CLIPTextModelWithProjection


def clip_encoders(backbone: Backbone) -> dict[str, ClipText]:
    """Return the model's CLIP text encoders by name; an encoder of another kind, such as T5, is left out."""
    modules = {name: backbone.component(name) for name in backbone.tokenizers()}
    return {name: module for name, module in modules.items() if isinstance(module, ClipText)}


def first_block(backbone: Backbone, encoder: str) -> list[str]:
    """Return the full names of the parameters of an encoder's first block."""
    names = (name for name, _ in backbone.component(encoder).named_parameters())
    return [f"{encoder}.{name}" for name in names if ".layers.0." in f".{name}"]


def encoder_blocks(backbone: Backbone, encoder: str) -> list[str]:
    """Return the full names of the parameters of all blocks of an encoder and of its final norm, the tables apart."""
    names = (name for name, _ in backbone.component(encoder).named_parameters())
    return [f"{encoder}.{name}" for name in names if ".layers." in f".{name}" or "final_layer_norm." in name]


def token_ids(backbone: Backbone, encoder: str, prompts: Sequence[str]) -> Int[Tensor, "n tokens"]:
    """Return the ids of prompts as a pipeline tokenizes them for the encoder."""
    tokenizer = backbone.tokenizers()[encoder]
    return tokenizer(list(prompts), max_length=tokenizer.model_max_length, **PADDED)["input_ids"]


def last_block(encoder: ClipText, ids: Int[Tensor, "n tokens"]) -> Float[Tensor, "n tokens dim"]:
    """Return the output of an encoder's last block, before its final norm; with gradient."""
    return encoder(ids.to(encoder.device), output_hidden_states=True, return_dict=True).hidden_states[-1]
