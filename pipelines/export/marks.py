"""Marks by which readers of single files tell a model's family and what its denoiser predicts.

Checkpoints of Stable Diffusion XL say v-prediction and a noise level without signal by two tensors without entries,
which ComfyUI, Forge and A1111 look for. Headers follow Stability AI's model specification ("modelspec"), and those of
LoRA files kohya's scripts as well. For 1.x and 2.x there is no mark that these programs read: they guess.
"""

from collections.abc import Mapping

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.backbones.loaded import unwrapped
from erasure.errors import InputError

_ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}
# What A1111 tells the families of LoRA files by.
_KOHYA = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
# The weight of Stable Diffusion 2 by whose spread ComfyUI guesses, and the bound.
_GUESSED_BY, _SPREAD = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


def check_family(pipe: DiffusionPipeline, form: str) -> None:
    """Raise InputError if files of a format have no names for the layers of a model's family."""
    backbone = backbone_of(pipe)
    if backbone.family not in _KOHYA and not (form == "kohya" and backbone.lora_prefix):
        known = "Stable Diffusion 1.x, 2.x or XL"
        known += ", or a transformer with such names" if form == "kohya" else ""
        raise InputError(f"{form}: expected {known}, got {backbone.family}. Use --format pipeline, edit or lora.")


def predicts_velocity(pipe: DiffusionPipeline) -> bool:
    """Return True for v-prediction."""
    return pipe.scheduler.config.get("prediction_type") == "v_prediction"


def ends_without_signal(pipe: DiffusionPipeline) -> bool:
    """Return True if the noisiest level has no signal left (zero terminal SNR, arXiv:2305.08891)."""
    return bool(pipe.scheduler.config.get("rescale_betas_zero_snr", False))


def marking_tensors(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return the tensors that mark a checkpoint of Stable Diffusion XL; none for another family."""
    if backbone_of(pipe).family != "sdxl" or not predicts_velocity(pipe):
        return {}
    return {name: torch.empty(0) for name in ("v_pred", *(["ztsnr"] if ends_without_signal(pipe) else []))}


def header(pipe: DiffusionPipeline, kind: str = "") -> dict[str, str]:
    """Return the header of a file.

    Args:
        pipe: The model, or the base of an adapter.
        kind: "lora" for an adapter, "" for a model.
    """
    family = backbone_of(pipe).family
    if family not in _ARCHITECTURES:  # flow matching, which no reader takes for another
        return {"format": "pt"}
    architecture = _ARCHITECTURES[family]
    if family == "sd2" and predicts_velocity(pipe):
        architecture = "stable-diffusion-v2-768-v"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "v" if predicts_velocity(pipe) else "epsilon",
    }


def kohya_header(pipe: DiffusionPipeline, rank: int) -> dict[str, str]:
    """Return the header of a LoRA file of kohya's scripts, for factors of a rank."""
    family = backbone_of(pipe).family
    if family not in _KOHYA:
        return header(pipe)
    version = "sd_v2_768_v" if family == "sd2" and predicts_velocity(pipe) else _KOHYA[family]
    network = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    marks = {
        "ss_base_model_version": version,
        "ss_v2": str(family == "sd2"),
        "ss_v_parameterization": str(predicts_velocity(pipe)),
        "ss_zero_terminal_snr": str(ends_without_signal(pipe)),
    }
    return {**header(pipe, "lora"), **marks, **network}


def checkpoint_notes(pipe: DiffusionPipeline, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return notes on readers of a checkpoint that will take it for another kind of model."""
    velocity, family = predicts_velocity(pipe), backbone_of(pipe).family
    weight = tensors.get(_GUESSED_BY) if unwrapped(pipe.unet).config["cross_attention_dim"] == 1024 else None
    guessed = weight is not None and float(weight.float().std(unbiased=False)) > _SPREAD
    wrong = family != "sdxl" and velocity != guessed
    silent = ends_without_signal(pipe) and not (family == "sdxl" and velocity)
    notes = []
    if wrong:
        taken = "v-prediction" if guessed else "noise"
        actual = "v-prediction" if velocity else "noise"
        notes.append(
            f"The model predicts {actual}, for which such a file has no mark: ComfyUI takes it for {taken}. Set it by"
            " the node ModelSamplingDiscrete there, by a YAML file beside it in A1111, by config=config in diffusers."
        )
    if silent:
        notes.append(
            "The model is sampled from a noise level without signal (zero terminal SNR), for which such a file has no"
            " mark: set zsnr in ComfyUI's node ModelSamplingDiscrete, or pass config=config in diffusers."
        )
    return tuple(notes)
