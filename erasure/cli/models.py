"""Devices, loaded models, samplers and new folders, from the options of a command."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from ..errors import InputError
from ..io.processes import count, local_number
from ..io.text import visible
from .console import err

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..backbones.conditioning import Conditioning
    from ..concept import Concept
    from ..ledger import Ledger

_DTYPES = ("float32", "float16", "bfloat16")


def existing_device(name: str) -> str:
    """Return the name of a device that this machine has, for "auto" the fastest kind.

    Of processes that were launched together each has a device of CUDA of its own.

    Raises:
        InputError: The machine has no such device.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda" if count() == 1 else f"cuda:{local_number()}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # torch says "not compiled with CUDA" by an assertion
        raise InputError(f"device: expected one that this machine has, got {name!r}. Use --device cpu.") from None
    return name


def load_pipe(
    model: str, device: str, attention: str = "sdpa", dtype: str = "float32", *, stored: bool = False
) -> "DiffusionPipeline":
    """Load a model, with a spinner on stderr instead of the bars of other libraries.

    Args:
        model: "tinyworld", a diffusers folder or a Hub id.
        device: Device of the model.
        attention: Implementation of attention: "sdpa" or "xformers".
        dtype: Precision of the weights: "float32", "float16" or "bfloat16".
        stored: Whether the weights stay on the disk.
    """
    with err.status(Text(f"loading {visible(model)}")):
        import torch
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        from ..loading import load_model, load_stored

        if dtype not in _DTYPES:
            raise InputError(f"dtype: expected one of {', '.join(_DTYPES)}, got {dtype!r}. Leave it out for float32.")
        for library in (diffusers_logging, transformers_logging):
            library.disable_progress_bar()
        if stored:
            return load_stored(model)
        return load_model(model, device=device, dtype=getattr(torch, dtype), attention=attention)


def fingerprint_of(pipe: "DiffusionPipeline") -> str:
    """Return the fingerprint of the weights of a pipeline."""
    from ..backbones import backbone_of

    return backbone_of(pipe).fingerprint()


def encoded(pipe: "DiffusionPipeline", prompts: Sequence[str]) -> "Conditioning":
    """Return encoded prompts, with a note on stderr for each that is longer than the input of the text encoder."""
    from ..backbones import backbone_of

    states = backbone_of(pipe).encode(prompts)
    for prompt in dict.fromkeys(prompts):
        if states.is_cut(prompts.index(prompt)):
            err.print(f"note: the model reads only the beginning of {prompt!r}.")
    return states


def base_of(ledger: Path | None) -> str | None:
    """Return the name of the base model of a ledger; None if there is no ledger in the folder."""
    from ..ledger import Ledger, is_ledger

    return Ledger.open(ledger).base.name if ledger is not None and is_ledger(ledger) else None


def model_and_ledger(source: str) -> "tuple[str, Ledger | None]":
    """Return the name of the model of a LEDGER|MODEL argument, and the ledger, if it is one."""
    from ..ledger import Ledger, is_ledger

    if not is_ledger(source):
        return source, None
    ledger = Ledger.open(source)
    return ledger.base.name, ledger


@contextmanager
def standing_in(ledger: "Ledger | None", pipe: "DiffusionPipeline") -> Generator[None]:
    """Apply the removals that stand in a ledger, if there is one, for the length of a `with` block."""
    if ledger is None:
        yield
    else:
        with ledger.applied_to(pipe):
            yield


def lasting_name(model: str) -> str:
    """Return the name of a model as a ledger stores it: a folder by its full path, valid in any working directory."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def new_folder(concepts: "Sequence[Concept]") -> Path:
    """Return a new folder under erasure-runs, named after the removed concepts."""
    from ..ledger import slug

    return free_folder(slug(concepts[:4]))


def free_folder(name: str) -> Path:
    """Return a new folder under erasure-runs, with a number after its name if that exists."""
    folder, number = Path("erasure-runs") / name, 2
    while folder.exists():
        folder, number = Path("erasure-runs") / f"{name}-{number}", number + 1
    return folder
