"""A whole model under the names of the original releases, as one file: what `from_single_file`, ComfyUI and A1111 read.

The names are those of the code that Stable Diffusion 1.x, 2.x and XL were published with ("ldm", "sgm"): the denoiser's
blocks are counted through from its input to its output, and the text encoders of OpenCLIP keep their three attention
projections in one.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.backbones.loaded import unwrapped
from erasure.errors import InputError

from .marks import marking_tensors

_DENOISER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AUTOENCODER_RESNET = {"conv_shortcut": "nin_shortcut"}
_AUTOENCODER_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# diffusers drops what such a file holds of layer 23 of Stable Diffusion 2's encoder, of which 23 layers are used.
_MOST_LAYERS = 23


def checkpoint_tensors(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return a model's weights under the names of a single-file checkpoint; they share the model's memory if they can.

    Raises:
        InputError: The model has parts that such a file has no names for.
    """
    tensors: dict[str, Tensor] = {}
    unet, vae = unwrapped(pipe.unet), unwrapped(pipe.vae)
    if not isinstance(vae, AutoencoderKL):
        raise InputError(
            f"checkpoint: expected an AutoencoderKL, got {type(vae).__name__}, for which such a file has no names."
            " Use --format pipeline."
        )
    for key, weight in unet.state_dict().items():
        tensors[f"model.diffusion_model.{denoiser_name(key, unet.config)}"] = weight
    for key, weight in vae.state_dict().items():
        name = _autoencoder_name(key, len(vae.config["up_block_types"]))
        # The original's projections there are convolutions over one pixel.
        convolved = "mid.attn_1" in name and weight.ndim == 2
        tensors[f"first_stage_model.{name}"] = weight[:, :, None, None] if convolved else weight
    tensors.update(_encoders(pipe))
    return tensors | marking_tensors(pipe)


def denoiser_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the name that the original code gives a layer or parameter of the denoiser.

    Args:
        name: diffusers' name: "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k".
        config: Configuration of the denoiser.

    Raises:
        InputError: It has no such layer.
    """
    layers = config["layers_per_block"]
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if isinstance(layers, int) and match:
        side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        place = block * (layers + 1) + (layers if kind.endswith("samplers") else index) + (side == "down")
        where = f"{'input' if side == 'down' else 'output'}_blocks.{place}"
        match kind:
            case "resnets":
                return f"{where}.0.{_replaced(rest, _RESNET)}"
            case "attentions":
                return f"{where}.1.{rest}"
            case "downsamplers":
                return f"{where}.0.{rest.replace('conv', 'op', 1)}"
            case _:
                return f"{where}.{2 if 'CrossAttn' in config['up_block_types'][block] else 1}.{rest}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(0|1)\.(.+)", name):
        if match[1] == "resnets":
            return f"middle_block.{2 * int(match[2])}.{_replaced(match[3], _RESNET)}"
        if match[2] == "0":
            return f"middle_block.1.{match[3]}"
    for ours, theirs in _DENOISER.items():
        if name.startswith(f"{ours}."):
            return f"{theirs}.{name.removeprefix(f'{ours}.')}"
    raise _nameless(f"unet.{name}")


def _autoencoder_name(name: str, blocks: int) -> str:
    if re.match(r"(encoder|decoder)\.conv_(in|out)\.|(post_)?quant_conv\.", name):
        return name
    if match := re.fullmatch(r"(encoder|decoder)\.conv_norm_out\.(.+)", name):
        return f"{match[1]}.norm_out.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.+)", name):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{_replaced(match[3], _AUTOENCODER_RESNET)}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", name):
        return f"{match[1]}.mid.attn_1.{_replaced(match[2], _AUTOENCODER_ATTENTION)}"
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        # The decoder's blocks are counted from the image.
        block = int(match[2]) if match[1] == "encoder.down" else blocks - 1 - int(match[2])
        where = f"{match[1]}.{block}"
        match match[3]:
            case "resnets":
                return f"{where}.block.{match[4]}.{_replaced(match[5], _AUTOENCODER_RESNET)}"
            case "downsamplers" | "upsamplers":
                return f"{where}.{match[3].removesuffix('rs')}.{match[5]}"
            case _:
                pass
    raise _nameless(f"vae.{name}")


def _encoders(pipe: DiffusionPipeline) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors of the text encoders."""
    first = unwrapped(pipe.text_encoder)
    plain = {key.removeprefix("text_model."): weight for key, weight in first.state_dict().items()}
    if backbone_of(pipe).family == "sdxl":
        second = unwrapped(pipe.text_encoder_2)
        if first.config.hidden_size == second.config.hidden_size:
            raise InputError(
                "checkpoint: expected text encoders of two widths, by which readers of such a file tell them apart,"
                f" got {first.config.hidden_size} twice. Use --format pipeline."
            )
        yield from _as_clip(plain, "conditioner.embedders.0.transformer.text_model.")
        yield from _as_open_clip(second.state_dict(), "conditioner.embedders.1.model.")
    elif first.config.hidden_act == "quick_gelu":  # OpenAI's CLIP; OpenCLIP's models have the exact function
        yield from _as_clip(plain, "cond_stage_model.transformer.text_model.")
    else:
        if first.config.num_hidden_layers > _MOST_LAYERS:
            raise InputError(
                f"checkpoint: expected a text encoder of at most {_MOST_LAYERS} layers, got"
                f" {first.config.num_hidden_layers}, the last of which readers drop. Use --format pipeline."
            )
        yield from _as_open_clip(plain, "cond_stage_model.model.")


def _as_clip(weights: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((f"{prefix}{key}", weight) for key, weight in weights.items())


def _as_open_clip(weights: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    weights = {key.removeprefix("text_model."): weight for key, weight in weights.items()}
    for key, weight in weights.items():
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", key):
            where = f"{prefix}transformer.resblocks.{match[1]}"
            if projection := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", match[2]):
                if projection[1] == "q":
                    three = [weights[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                    yield f"{where}.attn.in_proj_{projection[2]}", torch.cat(three)
            else:
                yield f"{where}.{_replaced(match[2], _OPEN_CLIP_LAYER)}", weight
        elif key == "text_projection.weight":
            yield f"{prefix}text_projection", weight.T
        elif key in _OPEN_CLIP:
            yield f"{prefix}{_OPEN_CLIP[key]}", weight
        else:
            raise _nameless(f"text_encoder.{key}")


def _replaced(rest: str, names: Mapping[str, str]) -> str:
    """Return a name within a block with its layer's part replaced, if that has another name."""
    for ours, theirs in names.items():
        if rest == ours or rest.startswith(f"{ours}."):
            return theirs + rest.removeprefix(ours)
    return rest


def _nameless(name: str) -> InputError:
    return InputError(
        f"checkpoint: expected the layers of Stable Diffusion 1.x, 2.x or XL, got {name!r}. Use --format pipeline."
    )
