"""Checks of a model before its use: tokenizers that fit their encoders, weights that edits reach, a call to sample by.

Each is a fault that no later step would notice: ids without meaning, edits of parameters that nothing reads.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import cast

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..io.text import shortened
from .base import Backbone
from .loaded import denoiser_of, is_finite, not_finite
from .schedule import Discrete
from .storage import QUANTISED, is_stored

# Encoders' tables of words are made longer than the vocabulary to fit the hardware: T5's by 28.
_SPARE_ROWS = 128
_NO_LENGTH = 10**9  # transformers has a larger number where a tokenizer says none
_EDITABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CALL = ("prompt_embeds", "negative_prompt_embeds", "latents", "generator", "num_inference_steps", "output_type")
_IMAGE_OR_TEXT = {"Flux2Pipeline", "Flux2KleinPipeline"}  # make images of texts alone too
_USUAL_STEPS = (20, 50, 4, 1)
_OFFLOADING = {"group_offloading", "lazy_prefetch_group_offloading"}  # names of diffusers' hooks


def check_tokenizers(backbone: Backbone) -> None:
    """Refuse a model whose tokenizers are not those of its text encoders.

    Raises:
        InputError: A tokenizer's length, vocabulary or special tokens do not fit its encoder.
    """
    for name, tokenizer in backbone.tokenizers().items():
        if got := _misfit(tokenizer, backbone.component(name)):
            raise InputError(
                f"model: expected a {name.replace('text_encoder', 'tokenizer')} that fits the {name}, got one {got}."
                " Copy or download the tokenizer's files again."
            )


def _misfit(tokenizer: PreTrainedTokenizerBase | None, encoder: nn.Module) -> str:
    """Return the difference of a tokenizer from what its encoder reads; "" without one."""
    if tokenizer is None:
        return "that is missing"
    assert isinstance(encoder, PreTrainedModel)  # noqa: S101 - of a backbone
    rows = len(cast("nn.Embedding", encoder.get_input_embeddings()).weight)
    tokens = len(tokenizer)
    special = {"end-of-text": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}
    positions = getattr(encoder.config, "max_position_embeddings", None)
    generates = not type(encoder).__name__.startswith(("CLIP", "T5", "UMT5"))
    if generates:  # a language model: its chat template has its special tokens, its table hundreds of spare rows
        positions = None
    if tokens > rows or (tokens < rows - _SPARE_ROWS and not generates):
        return f"of {tokens} tokens where the encoder has {rows}"
    if positions is not None:
        special = {"start-of-text": tokenizer.bos_token_id, **special}
        longest = tokenizer.model_max_length
        if isinstance(longest, int | float) and longest > _NO_LENGTH:
            return "without a model_max_length in its tokenizer_config.json"
        if not isinstance(longest, int) or not len(special) <= longest <= positions:
            return f"with a model_max_length of {shortened(longest)} where the encoder has {positions} positions"
    for what, token in special.items():
        if not isinstance(token, int) or not 0 <= token < rows:
            return f"without a {what} token"
    # An old configuration says 2, by which the largest id is meant; CLIP alone looks for the token.
    expected = getattr(encoder.config, "eos_token_id", None)
    allowed = (2, tokenizer.eos_token_id, *(() if type(encoder).__name__.startswith("CLIP") else (None,)))
    if positions is not None and expected not in allowed:
        return f"whose end-of-text token is {tokenizer.eos_token_id} where the encoder's is {expected}"
    one, other = tokenizer(["a cat", "the dog"], add_special_tokens=False).input_ids
    return "" if one and other and one != other else "that does not tell 'a cat' from 'the dog'"


def check_editable(backbone: Backbone) -> None:
    """Refuse a model whose weights an edit would not reach.

    Raises:
        InputError: Weights are fused, beneath an adapter, quantised, offloaded, or computed from others.
    """
    for name, module in _modules(backbone):
        if _is_fused(module):
            raise _unreached(name, "fused projections", "Call pipe.unfuse_qkv_projections() first")
        if hasattr(module, "base_layer"):
            raise _unreached(
                name,
                "an active LoRA or another adapter",
                "Call pipe.unload_lora_weights() first, after pipe.fuse_lora() to keep its effect",
            )
        if parametrize.is_parametrized(module) or _is_computed(module):
            raise _unreached(name, "weights computed from others", "Remove the parametrization first")
        if _OFFLOADING & set(getattr(getattr(module, "_diffusers_hook", None), "hooks", ())):
            raise _unreached(name, "group offloading, which has copies of them", "Enable it after the edit was merged")
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dtype not in _EDITABLE:
                dtype = str(parameter.dtype).removeprefix("torch.")
                raise _unreached(f"{name}.{key}", f"numbers of {dtype}", QUANTISED)


def check_finite(backbone: Backbone) -> None:
    """Refuse a model with weights that are not finite.

    Of a model whose weights stay in their files the layers are read that read text; export reads the others.

    Raises:
        InputError: A weight is inf or nan.
    """
    for name, weight in _weights(backbone):
        if weight.dtype in _EDITABLE and not is_finite(weight.detach()):
            raise not_finite(name)


def _weights(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Give weights by full name; a text encoder that stays in its files is checked where it is read."""
    if is_stored(backbone.pipe):
        for name in (name for name, site in backbone.sites().items() if site.reads is not None):
            yield from backbone.weights(name.__eq__).items()
        return
    for component, module in backbone.pipe.components.items():
        if isinstance(module, nn.Module):
            for name, weight in module.named_parameters():
                if weight.is_meta:  # it is elsewhere: an edit could not be compared with the model either
                    raise _unreached(f"{component}.{name}", "none in memory", "Load the model whole")
                yield f"{component}.{name}", weight


def _is_fused(module: nn.Module) -> bool:
    """Return True for an attention layer that reads its fused projections; the flag alone stays when that is undone."""
    reads_by_flag = not isinstance(module, Attention) or "Fused" in type(module.processor).__name__
    return getattr(module, "fused_projections", False) and reads_by_flag


def _is_computed(module: nn.Module) -> bool:
    """Return True for a layer whose weight a hook makes of other parameters: weight_norm, spectral_norm, pruning."""
    return hasattr(module, "weight_orig") or (hasattr(module, "weight_g") and hasattr(module, "weight_v"))


def _modules(backbone: Backbone) -> Iterator[tuple[str, nn.Module]]:
    """Give denoiser and text encoders with all that they consist of, by full name."""
    denoiser = next(iter(backbone.sites())).partition(".")[0]
    for component in (denoiser, *backbone.tokenizers()):
        for inner, module in backbone.component(component).named_modules():
            yield f"{component}.{inner}" if inner else component, module


def _unreached(name: str, got: str, remedy: str) -> InputError:
    return InputError(f"model: expected weights that an edit reaches, got {got} in {name!r}. {remedy}.")


def check_samples(pipe: DiffusionPipeline) -> None:
    """Refuse a pipeline that does not make images of texts alone.

    Raises:
        InputError: It is of another task, lacks its autoencoder or a tokenizer, or has the autoencoder of another
            family.
    """
    kind = type(pipe)
    call = inspect.signature(kind.__call__).parameters
    lacking = [name for name in _CALL if not any(each.startswith(name) for each in call)]
    if _is_distilled(pipe):
        lacking = [name for name in lacking if not name.startswith("negative")]
    takes_image = "image" in call and not any(base.__name__ in _IMAGE_OR_TEXT for base in kind.__mro__)
    if takes_image or lacking:
        what = "takes an image" if takes_image else f"takes no {', '.join(lacking)}"
        raise InputError(
            f"model: expected a pipeline that makes images of texts alone, got {kind.__name__}, whose call {what}."
            f" {_remedy(kind)}"
        )
    for name in ("vae", *(name for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if hasattr(pipe, name))):
        encoder = name.replace("tokenizer", "text_encoder")
        if getattr(pipe, name, None) is None and (name == "vae" or getattr(pipe, encoder, None) is not None):
            what = {"vae": "an autoencoder"}.get(name, f"a {name}")
            raise InputError(
                f"model: expected a pipeline with {what}, got {kind.__name__} without one. Add its {name}."
            )
    scale = getattr(pipe.vae.config, "scaling_factor", 1.0)
    if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
        raise InputError(
            f"model: expected a scaling_factor above 0 in the autoencoder's config.json, got {scale!r}."
            " Copy the file again."
        )
    check_channels(denoiser_of(pipe))
    _check_latents(pipe)
    _check_conditions(pipe, call)


def _check_conditions(pipe: DiffusionPipeline, call: Mapping[str, object]) -> None:
    """Raise InputError if a UNet reads sizes and a sentence vector that the pipeline's call does not give it."""
    denoiser = denoiser_of(pipe)
    if not isinstance(denoiser, UNet2DConditionModel):
        return
    reads, gives = denoiser.config.get("addition_embed_type") is not None, "pooled_prompt_embeds" in call
    if reads != gives:
        got = "one with it" if reads else "one without"
        raise InputError(
            f"model: expected a UNet {'with' if gives else 'without'} a sentence vector for {type(pipe).__name__}, got"
            f" {got}. Write the model's own pipeline as _class_name in its model_index.json."
        )


def _check_latents(pipe: DiffusionPipeline) -> None:
    """Raise InputError if the autoencoder has other latents than the denoiser reads: it is of another family."""
    config, kind = pipe.vae.config, type(pipe.vae).__name__
    channels = config.get("latent_channels", config.get("z_dim"))
    read = cast("ModelMixin", denoiser_of(pipe)).config["in_channels"]
    if isinstance(channels, int) and read not in (channels, 4 * channels):  # or packed two by two
        raise InputError(
            f"model: expected an autoencoder whose latents the denoiser reads, of {read} channels, got {kind} with"
            f" {channels}. Copy the vae of this model's family."
        )


def check_schedule(backbone: Backbone) -> None:
    """Refuse a scheduler that predicts something unknown, whose noise levels are none, or that samples in no steps.

    Raises:
        InputError: It is such a scheduler.
    """
    if "images" in backbone.abilities:
        _check_some_steps(backbone)
    if not isinstance(backbone.schedule, Discrete):
        return
    betas = getattr(backbone.pipe.scheduler, "betas", None)
    if isinstance(betas, Tensor) and not bool(((betas >= 0) & (betas <= 1)).all()):  # a nan is not
        raise InputError(
            f"model: expected betas from 0 to 1 in the scheduler's scheduler_config.json, got {betas.max().item():.3g}."
            " Copy the file again."
        )


def _check_some_steps(backbone: Backbone) -> None:
    """Raise InputError if the scheduler takes none of some usual numbers of steps."""
    refusals: list[InputError] = []
    for steps in _USUAL_STEPS:
        try:
            backbone.check_steps(steps)
        except InputError as error:
            refusals.append(error)
        else:
            return
    raise InputError(f"model: expected a scheduler to sample by, got one that refuses: {refusals[0]}")


def _is_distilled(pipe: DiffusionPipeline) -> bool:
    """Return True for a model that is guided by an embedding and has no unconditional prompt."""
    return bool(getattr(getattr(pipe, "transformer", None), "config", {}).get("guidance_embeds", False))


def _remedy(kind: type[DiffusionPipeline]) -> str:
    """Return the way to a pipeline that makes images of texts from one of another task."""
    for task in ("Img2Img", "Inpaint", "ControlNet"):
        same = kind.__name__.replace(task, "")
        if same != kind.__name__ and hasattr(diffusers, same):
            return f"If its denoiser reads latents alone, write {same!r} as _class_name in its model_index.json."
    return "Load the text-to-image model that it was made from."


def check_channels(denoiser: nn.Module) -> None:
    """Raise InputError if a denoiser reads more than latents, such as the rest of an image to fill in."""
    config = cast("ModelMixin", denoiser).config
    read, predicted = config["in_channels"], config.get("out_channels") or config["in_channels"]
    # A learned variance doubles the output; some configurations count latents packed two by two on one side alone.
    if read not in (predicted, predicted / 2, 4 * predicted):
        raise InputError(
            f"model: expected a denoiser that reads latents alone, got one of {read} channels in and {predicted} out,"
            " as for inpainting. Load the text-to-image model that it was made from."
        )


def check_call(backbone: Backbone, steps: int, height: int | None, width: int | None) -> None:
    """Refuse a pipeline that does not make images of texts alone, or not in so many steps at a size in pixels.

    Raises:
        InputError: It does not.
    """
    check_samples(backbone.pipe)
    backbone.check_steps(steps)
    backbone.latent_shape(height, width)
