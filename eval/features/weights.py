"""Weights of networks that measure: their names in protocols, and their files in the local caches or the network."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse

import torch
from transformers import PreTrainedModel

from erasure.errors import ErasureError, InputError, reason
from erasure.tinyworld.judge import WorldClip
from erasure.tinyworld.oracle import Oracle

from ..images.pipeline_digest import weights_digest

Loaded = TypeVar("Loaded")


class MissingWeightsError(ErasureError, FileNotFoundError):
    """Weights that are not in the local cache, and may not or cannot be downloaded."""


def oracle_name(oracle: Oracle) -> str:
    """Return the name of the tiny world's oracle in protocols, with a digest of its weights."""
    return f"tinyworld-oracle {weights_digest(oracle.net)[:12]}"


def world_clip_name(clip: WorldClip) -> str:
    """Return the name of the tiny world's CLIP in protocols, with a digest of its weights."""
    return f"tinyworld-judge {weights_digest(clip.model)[:12]}"


def missing_weights(where: str, what: str, fetch: str, error: Exception | None = None) -> MissingWeightsError:
    """Return the error for weights that are not there.

    Args:
        where: Metric or model that needs them.
        what: The weights, by the name they are published under.
        fetch: Instruction to get them, one sentence without its full stop.
        error: Error of the download; None if none was allowed.
    """
    if error is None:
        return MissingWeightsError(
            f"{where}: expected the weights {what!r} in the local cache, got none."
            f" {fetch}, or allow the download with download=True."
        )
    return MissingWeightsError(f"{where}: expected to download the weights {what!r}, got {reason(error)!r}. {fetch}.")


def from_hub(
    load: Callable[..., Loaded], source: str | Path, where: str, *, download: bool, **options: object
) -> Loaded:
    """Call a `from_pretrained` of transformers on the local cache, or on the network if that is allowed.

    Args:
        load: The class method.
        source: A repository of the Hub, or a folder.
        where: Metric or model that needs it, for errors.
        download: Permission to use the network.
        options: Passed on.

    Raises:
        MissingWeightsError: It is in neither.
    """
    try:
        return load(source, local_files_only=not download, **options)
    except OSError as error:
        fetch = f"Fetch them: hf download {source}"
        raise missing_weights(where, str(source), fetch, error if download else None) from error


def model_from_hub(
    model_class: type,
    source: str | Path,
    where: str,
    *,
    download: bool,
    unused: tuple[str, ...] = (),
    device: str = "cpu",
    **options: object,
) -> PreTrainedModel:
    """Load a model of transformers, every weight of it.

    transformers fills what a checkpoint lacks with random numbers and a warning; a score of those is none.

    Args:
        model_class: Its class, or an automatic one.
        source: A repository of the Hub, or a folder.
        where: Metric or model that needs it, for errors.
        download: Permission to use the network.
        unused: Beginnings of the names of weights that are not used.
        device: Device of the model.
        options: Passed on.

    Raises:
        MissingWeightsError: The checkpoint is not in the local cache and may not or cannot be downloaded.
        InputError: The checkpoint is of another model.
    """
    # The automatic classes look for an adapter in the network, whatever they may otherwise.
    options = {"adapter_kwargs": {"local_files_only": not download}, "output_loading_info": True, **options}
    model, info = from_hub(model_class.from_pretrained, source, where, download=download, **options)
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if lacking:
        raise InputError(
            f"{where}: expected a checkpoint of {type(model).__name__}, got {str(source)!r} without"
            f" {len(lacking)} of its weights, {lacking[0]!r} among them. Name another checkpoint."
        )
    return model.eval().to(device)


def from_url(url: str, where: str, *, download: bool) -> Path:
    """Return the file that torch.hub keeps of an address, fetched if it is not there and that is allowed.

    Raises:
        MissingWeightsError: It is not there and may not or cannot be downloaded.
    """
    name = Path(urlparse(url).path).name
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if file.is_file():
        return file
    fetch = f"Fetch them: curl -L --create-dirs -o {file} {url}"
    if not download:
        raise missing_weights(where, name, fetch)
    file.parent.mkdir(parents=True, exist_ok=True)
    digest = re.search(r"-([0-9a-f]{8,})\.", name)  # torch.hub's way of naming files
    try:
        torch.hub.download_url_to_file(url, str(file), digest.group(1) if digest else None, progress=False)
    except (OSError, RuntimeError) as error:  # no connection; a file that is not what its name says
        raise missing_weights(where, name, fetch, error) from error
    return file
