"""What a visitor takes home: files of the session's own folder, made when they are asked for."""

import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save

from erasure.errors import InputError, reason, unknown_name
from erasure.files import make_folder, write_whole
from erasure.ledger import Ledger

from .jobs import Track
from .sessions import Session
from .studio import Studio

FORMS: Mapping[str, str] = {
    "edit": "what changes, as one safetensors file: exact and small, for erasure.Edit.load",
    "lora": "LoRA weights, for load_lora_weights of any diffusers pipeline of this model",
    "pipeline": "the whole model with the removals merged in: a diffusers folder, zipped",
    "ledger": "the record of every removal with its edit, zipped: verify it, undo one or go on elsewhere",
}


def export(studio: Studio, session: Session, form: str, track: Track) -> tuple[Path, str]:
    """Write what stands in a form of `FORMS`, and return the file with what there is to say of it.

    Raises:
        UnknownNameError: There is no such form.
        InputError: Nothing stands, the form cannot hold it, or the folder cannot be written.
    """
    if form not in FORMS:
        raise unknown_name("form", str(form)[:40], FORMS)
    ledger = session.ledger()
    if ledger is None or not ledger.standing:
        raise InputError("export: expected a removal that stands, got none. Erase a concept first.")
    folder = session.folder / "exports" / secrets.token_hex(4)
    make_folder(folder)
    with track.holding(studio.lock):
        track.say(f"writing the {form}")
        return {"edit": _edit, "lora": _lora, "pipeline": _pipeline, "ledger": _ledger}[form](studio, ledger, folder)


def _edit(studio: Studio, ledger: Ledger, folder: Path) -> tuple[Path, str]:
    return ledger.edit().save(folder / "edit.safetensors"), "Exact."


def _lora(studio: Studio, ledger: Ledger, folder: Path) -> tuple[Path, str]:
    lora = ledger.edit().as_lora(studio.pipe)
    path = folder / "pytorch_lora_weights.safetensors"
    write_whole(path, save(dict(lora.state_dict), metadata={"format": "pt"}))
    exact = lora.relative_error < 1e-6
    return path, "Exact." if exact else f"Cut to fit: the relative error of the change is {lora.relative_error:.3f}."


def _pipeline(studio: Studio, ledger: Ledger, folder: Path) -> tuple[Path, str]:
    model = folder / "model"
    with ledger.applied_to(studio.pipe):
        try:
            studio.pipe.save_pretrained(model)
        except OSError as error:
            raise InputError(f"export: expected a folder that can be written, got {reason(error)!r}.") from error
    return _zipped(model, folder / "model.zip"), "Unzip it; diffusers loads the folder by from_pretrained."


def _ledger(studio: Studio, ledger: Ledger, folder: Path) -> tuple[Path, str]:
    parts = ("ledger.json", "edits", "rows")
    return _zipped(ledger.path, folder / "ledger.zip", parts), "Unzip it; `erasure log` and the others read the folder."


def _zipped(source: Path, target: Path, parts: tuple[str, ...] = ()) -> Path:
    def wanted(file: Path) -> bool:
        return file.is_file() and (not parts or file.relative_to(source).parts[0] in parts)

    try:
        with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(filter(wanted, source.rglob("*"))):
                archive.write(file, Path(target.stem) / file.relative_to(source))
    except OSError as error:
        raise InputError(f"export: expected a folder that can be written, got {reason(error)!r}.") from error
    return target
