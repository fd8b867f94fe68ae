"""Loading of a pipeline by its name."""
# pyright: reportUnknownMemberType=false
# Methods of diffusers take untyped keyword arguments.

import logging
from importlib import import_module
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from ..arguments import checks_arguments
from ..backbones import backbone_of
from ..backbones.usable import check_samples, check_schedule, check_tokenizers
from ..errors import InputError, reason, unknown_name
from ..personalize.folder import PERSONALIZED, load_personalized
from ..profile import DEFAULT_MODEL, profile_of
from .components import lacks_weights, load_folder, without_warnings
from .stored import stored_model

logger = logging.getLogger(__name__)

Attention = Literal["sdpa", "xformers"]


@checks_arguments
def load_model(
    name: str | Path = DEFAULT_MODEL, *, device: str = "cpu", dtype: torch.dtype | None = None, attention: str = "sdpa"
) -> DiffusionPipeline:
    """Return the pipeline of a model, given by its name.

    Args:
        name: "tinyworld" (the embedded model) or "tinyworld-flux" (a transformer of its world), a folder in diffusers'
            layout or of `erasure personalize`, or the id of a model on the Hub.
        device: "cpu", "cuda", "cuda:1", "mps".
        dtype: Precision of the weights; None is float32.
        attention: Implementation of attention: "sdpa" or "xformers"; see `attend_by`.

    Raises:
        InputError: The name or device is none of these, the folder is not a model, the Hub does not answer, or the
            attention does not work on the device.
    """
    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device: expected 'cpu', 'cuda', 'cuda:1' or 'mps', got {device!r}. Name one.") from error
    pipe = _loaded(str(name), device, torch.float32 if dtype is None else dtype)
    _check_use(pipe)
    if attention != "sdpa":
        attend_by(pipe, attention)
    return pipe


@checks_arguments
def attend_by(pipe: DiffusionPipeline, attention: str) -> None:
    """Set the implementation of attention of a pipeline: torch ("sdpa") or xformers; maps are captured under either.

    Raises:
        InputError: xformers is not installed, or has no kernel for the device and precision of the pipeline.
    """
    if attention not in get_args(Attention):
        raise unknown_name("attention", attention, get_args(Attention))
    if attention == "sdpa":
        pipe.disable_xformers_memory_efficient_attention()
        return
    try:
        attend_once_by_xformers(pipe.device, pipe.dtype)
        pipe.enable_xformers_memory_efficient_attention()
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(
            f"attention: expected an xformers that works on {pipe.device} in {str(pipe.dtype).removeprefix('torch.')},"
            f" got {reason(error).rstrip('.')}. Use sdpa, or see `erasure doctor`."
        ) from None


@checks_arguments
def attend_once_by_xformers(device: torch.device | str, dtype: torch.dtype) -> None:
    """Compute one small attention by xformers, to see whether it works; errors pass through."""
    tokens = torch.ones(1, 4, 1, 40, device=device, dtype=dtype)
    import_module("xformers.ops").memory_efficient_attention(tokens, tokens, tokens).sum().item()


def _loaded(name: str, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    if (profile := profile_of(name)).folder is not None:
        return profile.load(device=device, dtype=dtype)
    if (Path(name) / PERSONALIZED).is_file():
        return load_personalized(Path(name), lambda base: _loaded(base, device, dtype))
    if Path(name).is_dir():
        _check_index(Path(name), name)
        return load_folder(Path(name), dtype).to(device)
    pipe = load_folder(_hub_folder(name), dtype)
    pipe.register_to_config(_name_or_path=name)  # as diffusers names a model of the Hub
    return pipe.to(device)


@checks_arguments
def load_stored(name: str | Path = DEFAULT_MODEL) -> DiffusionPipeline:
    """Return the pipeline of a model without its weights, which are read from its files when needed.

    Edits that depend on text alone can be fitted on it, and exported; see `load_model` for names and errors.

    Raises:
        InputError: It is a personalised model, shares files with another one, or has weights that are no safetensors
            files.
    """
    pipe = stored_model(_stored_folder(str(name)))
    _check_use(pipe)
    return pipe


def _check_use(pipe: DiffusionPipeline) -> None:
    """Refuse a model that cannot be edited and sampled from, before anything is recorded about it."""
    backbone = backbone_of(pipe)
    check_tokenizers(backbone)
    check_samples(pipe)
    check_schedule(backbone)
    backbone.latent_shape()


def _stored_folder(name: str) -> Path:
    """Return the folder of a model whose weights stay in their files."""
    if (shipped := profile_of(name).folder) is not None:
        if not (shipped / "model_index.json").is_file():
            raise InputError(
                f"model: expected one with all of its files, got {name!r}, which has parts of another model's."
                " Leave --low-memory out."
            )
        return shipped
    if (Path(name) / PERSONALIZED).is_file():
        raise InputError(
            f"model: expected a model of files alone, got the personalised {name!r}. Leave --low-memory out."
        )
    if Path(name).is_dir():
        _check_index(Path(name), name)
        return Path(name)
    return _hub_folder(name)


def _check_index(folder: Path, name: str) -> None:
    if not name.strip() or not (folder / "model_index.json").is_file():
        raise InputError(f"model: expected a folder with a model_index.json, got {name!r}. Save one by diffusers.")


def _hub_folder(name: str) -> Path:
    """Return the folder with the downloaded files of a model on the Hub.

    Where there are no main files, those of the half-precision variant are taken.

    Raises:
        InputError: It is no name of a model there, or the Hub cannot be reached.
    """
    if Path(name).is_file():
        raise InputError(
            f"model: expected a folder or a model on the Hub, got the file {name!r}. Name the folder of a model that"
            " diffusers saved."
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"model: expected 'tinyworld', a folder or a Hub id 'owner/name', got {name!r}. Check the path."
        )
    try:
        with without_warnings():
            folder = Path(cast("str", DiffusionPipeline.download(name)))
            if lacks_weights(folder):
                folder = Path(cast("str", DiffusionPipeline.download(name, variant="fp16")))
        return folder
    except HFValidationError as error:
        raise InputError(f"model: expected a Hub id 'owner/name', got {name!r}. Check the spelling.") from error
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        logger.debug("loading %s failed", name, exc_info=True)
        raise InputError(
            f"model: expected a folder or a model on the Hub, got {name!r}, which could not be loaded"
            f" ({type(error).__name__}). Check the name and the network, or give a folder."
        ) from error
