"""The tiny world: drawn pictures, a model trained on them, an oracle that knows the truth, and a separate judge."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from .judge import WorldClip
    from .oracle import Oracle

MODEL: Final[Path] = Path(__file__).parent / "model"
"""The shipped checkpoint: a plain diffusers folder with the oracle and the judge beside it."""


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
        pipe = StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype or torch.float32, local_files_only=True
        )
    finally:
        logging.set_verbosity(verbosity)
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
