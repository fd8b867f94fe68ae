"""Publication of an export: the files, a model card, an image of before and after, and a record."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline

from erasure.io.files import new_folder, write_whole
from erasure.ledger import Ledger
from erasure.progress import OnProgress
from erasure.sampling import SamplingSettings

from ...pipelines.export.formats import Export, Written, write_export, write_record
from ..images.png import as_png
from .model_card import BEFORE_AFTER, before_after, model_card


def publish(
    ledger: Ledger,
    pipe: DiffusionPipeline,
    export: Export,
    to: Path,
    *,
    name: str,
    prompts: Sequence[str],
    sampler: SamplingSettings,
    on_progress: OnProgress | None = None,
) -> Written:
    """Write an export to a new folder, whole or not at all.

    Args:
        ledger: The ledger.
        pipe: Its unedited base.
        export: Export to write.
        to: The folder; it must not be there, or be empty.
        name: Name of the model on the card: "USER/NAME", or the folder's name.
        prompts: For the image, a row each; none leaves it out.
        sampler: Sampling settings.
        on_progress: Receives the number of images done.

    Raises:
        InputError: The folder is taken or cannot be written, nothing stands, or the format cannot hold what does.
        BaseMismatchError: The pipeline is not the ledger's base.
        LedgerError: A file of the ledger is missing or was changed.
    """
    with new_folder(to) as folder:
        written = replace(write_export(ledger, pipe, export, folder), name=name)
        if prompts:
            image = before_after(ledger, pipe, prompts, sampler, on_progress)
            write_whole(folder / BEFORE_AFTER, as_png(image))
        _describe(ledger, pipe, written, folder)
    return written


def rename(ledger: Ledger, pipe: DiffusionPipeline, written: Written, folder: Path, name: str) -> Written:
    """Write the card of an export again, with another name of the model.

    Args:
        ledger: The ledger that it was made of.
        pipe: Its base.
        written: Written export.
        folder: The folder.
        name: The new name.

    Raises:
        InputError: The folder cannot be written.
    """
    renamed = replace(written, name=name)
    _describe(ledger, pipe, renamed, folder)
    return renamed


def _describe(ledger: Ledger, pipe: DiffusionPipeline, written: Written, folder: Path) -> None:
    card = model_card(ledger, pipe, written, image=(folder / BEFORE_AFTER).is_file())
    write_whole(folder / "README.md", str(card).encode())
    write_record(written, folder)
