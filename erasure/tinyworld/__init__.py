"""The tiny world: drawn pictures, a model trained on them, an oracle that knows the truth, and a separate judge."""
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# Methods of diffusers and transformers take untyped keyword arguments.

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from diffusers import FluxPipeline, StableDiffusionPipeline

    from .judge import WorldClip
    from .oracle import Oracle

MODEL: Final[Path] = Path(__file__).parent / "model"
"""The shipped checkpoint: a plain diffusers folder with the oracle and the judge beside it."""

FLUX: Final[Path] = Path(__file__).parent / "flux"
"""The transformer of the same world: a denoiser alone, the other parts are the shipped model's."""


def load(
    device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None, folder: Path = MODEL
) -> "StableDiffusionPipeline":
    """Return the shipped pipeline.

    Args:
        device: Device of the pipeline.
        dtype: Precision of the weights; None: float32. The files are float16.
        folder: Folder of the model; default: the shipped one.

    Raises:
        InputError: The folder holds no model.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    from ..errors import InputError

    if not (folder / "model_index.json").exists():
        raise InputError(
            f"tinyworld: expected a trained model in {str(folder)!r}, got none."
            " Train one: python -m erasure.tinyworld.training --help."
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn that there is no safety checker
    try:
        pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    finally:
        logging.set_verbosity(verbosity)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_flux(
    device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None, folder: Path = FLUX
) -> "FluxPipeline":
    """Return the pipeline of a transformer of the world; see `load`.

    Args:
        device: Device of the pipeline.
        dtype: Precision of the weights; None: float32.
        folder: Folder of the model, with a text tower and an autoencoder of its own or without.

    Raises:
        InputError: The folder holds no transformer.
    """
    import torch
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from ..errors import InputError
    from .models import assemble_flux

    if not (folder / "transformer" / "config.json").exists():
        raise InputError(
            f"tinyworld-flux: expected a trained transformer in {str(folder)!r}, got none. Train one (some hours):"
            " python -m erasure.tinyworld.training --stages transformer,assemble --out DIR; then copy"
            " DIR/model/transformer there."
        )
    dtype, others = dtype or torch.float32, folder if (folder / "vae").exists() else MODEL
    pipe = assemble_flux(
        FluxTransformer2DModel.from_pretrained(folder / "transformer", dtype=dtype, local_files_only=True),
        CLIPTextModel.from_pretrained(others / "text_encoder", dtype=dtype, local_files_only=True),
        AutoencoderKL.from_pretrained(others / "vae", dtype=dtype, local_files_only=True),
        CLIPTokenizer.from_pretrained(others / "tokenizer", local_files_only=True),
    )
    pipe.register_to_config(_name_or_path=str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@functools.cache
def load_oracle(device: str = "cpu") -> "Oracle":
    """Return the shipped oracle."""
    from .oracle import Oracle

    return Oracle.load(MODEL / "oracle", device)


@functools.cache
def load_clip(device: str = "cpu") -> "WorldClip":
    """Return the shipped open_clip model, the second judge; needs the `eval` extra."""
    from transformers import CLIPTokenizer

    from .judge import WorldClip

    return WorldClip.load(MODEL / "judge", CLIPTokenizer.from_pretrained(MODEL / "tokenizer"), device)
