"""Digest of a pipeline: every byte that decides its images."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from erasure.errors import InputError
from erasure.io.json_files import json_digest

# What the libraries note down about a network and how it was loaded, and that its output does not depend on.
_NOTES = ("transformers_version", "architectures", "dtype", "torch_dtype")
# How the last call of a tokenizer cut and padded is kept in it as well.
_CALLS = ("truncation", "padding")


@runtime_checkable
class _Configured(Protocol):
    """A configuration of transformers, or a part of a pipeline that keeps its settings itself."""

    def to_dict(self) -> dict[str, Any]: ...


def pipeline_digest(pipe: DiffusionPipeline) -> str:
    """Return the SHA-256 of all in a pipeline that decides its images, but for its scheduler.

    That is every byte of the weights of all its networks (denoiser, text encoders, decoder, safety checker, ...), their
    configurations, tokenizers, image processors and its own settings. `Backbone.fingerprint` reads some values of the
    weights that an edit may change, which tells models apart; here a decoder that was exchanged and a row of one
    embedding count, too. Measured: half a second a GB on one core.

    Raises:
        InputError: Weights that are not in memory.
    """
    parts: dict[str, object] = {name: value for name, value in pipe.config.items() if _is_setting(name, value)}
    for name, part in pipe.components.items():
        if name != "scheduler" and part is not None:
            parts[name] = _contents(name, getattr(part, "_orig_mod", part))  # of what torch.compile wrapped
    return json_digest(parts)


def weights_digest(network: nn.Module) -> str:
    """Return the SHA-256 of every byte of a network's weights.

    Raises:
        InputError: Weights that are not in memory.
    """
    weights = _weights(type(network).__name__, network)
    return json_digest(weights)


def _is_setting(name: str, value: object) -> bool:
    # A component stands in a pipeline's configuration as its library and class.
    return not name.startswith("_") and not isinstance(value, tuple | list)


def _contents(name: str, part: object) -> object:
    if isinstance(part, nn.Module):
        return {"class": type(part).__name__, "config": _config(part), "weights": _weights(name, part)}
    if isinstance(part, PreTrainedTokenizerBase):
        return _tokenizer(part)
    return {"class": type(part).__name__, "settings": _config(part)}


def _config(part: object) -> dict[str, object]:
    config = getattr(part, "config", part)
    if isinstance(config, _Configured):
        return _without_notes(config.to_dict())
    return _without_notes(config) if isinstance(config, Mapping) else {}


def _without_notes(settings: Mapping[Any, Any]) -> dict[str, object]:
    return {
        str(key): _without_notes(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if not str(key).startswith("_") and key not in _NOTES
    }


def _weights(name: str, network: nn.Module) -> dict[str, str]:
    tensors = dict(_tensors(network))
    for key, tensor in tensors.items():
        if tensor.device.type == "meta":
            raise InputError(
                f"store: expected the weights of {name!r} in memory, got {key!r} offloaded. Load the model whole."
            )
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if fast is None else {k: v for k, v in json.loads(fast.to_str()).items() if k not in _CALLS}
    return {
        "class": type(tokenizer).__name__,
        "rules": rules,
        "vocabulary": json_digest(tokenizer.get_vocab()),
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "length": tokenizer.model_max_length,
    }
