"""Records of experiments on the tiny world."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from erasure.eval.protocols.sources import Source, source_of
from erasure.io.files import write_whole
from erasure.ledger import Ledger
from erasure.progress import OnProgress, staged
from erasure.runs import removal
from erasure.runs.schema import Run


def plain_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return a command's options without places on a machine."""
    return {key: value for key, value in vars(options).items() if not isinstance(value, Path)}


def erased_source(run: Run, pipe: DiffusionPipeline, folder: Path, on_progress: OnProgress) -> Source:
    """Return the variants of a run's model; its concepts are removed into the ledger of a folder where they are not.

    Raises:
        InputError: A concept cannot be removed, or the folder cannot be written.
    """
    ledger = Ledger.open_or_create(folder, pipe, run.model)
    todo, _ = removal.remaining(run, ledger)
    list(removal.remove(todo, pipe, ledger, on_progress=staged(on_progress, "removing")))
    return source_of(str(folder), lambda _: pipe)


def write_record(record: Mapping[str, Any], folder: Path) -> Path:
    """Write `run.json` and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    path = folder / "run.json"
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    return path
