"""Exports of a session: files in its own folder, written on request."""

import re
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from erasure.errors import InputError, reason, unknown_name
from erasure.io.files import make_folder
from erasure.ledger import Ledger
from erasure.progress import staged

from ..eval.reports.model_card import prompts_of
from ..eval.reports.publish import publish
from ..io.push import check_push, push
from ..pipelines.export.formats import Export
from . import limits
from .jobs import Track
from .results import Exported
from .sessions import Session
from .studio import Studio

FORMS: Mapping[str, str] = {
    "edit": "the changed weights, as one safetensors file: exact and small, for erasure.WeightEdit.load",
    "lora": "LoRA weights, for load_lora_weights of any diffusers pipeline of this model",
    "kohya": "LoRA weights under the names of ComfyUI and A1111",
    "pipeline": "the whole model with the removals merged in: a diffusers folder with a model card, zipped",
    "checkpoint": "the whole model as one file, for from_single_file, ComfyUI and A1111, with its configs, zipped",
    "ledger": "the ledger with the edit of every removal, zipped: verify it, undo one or continue elsewhere",
}
_ZIPPED = ("pipeline", "checkpoint")


def export(studio: Studio, session: Session, form: str, track: Track) -> Exported:
    """Export the standing removals in a format of `FORMS`.

    Raises:
        UnknownNameError: The format does not exist.
        InputError: No entry stands, the format cannot hold it, or the folder cannot be written.
    """
    if form not in FORMS:
        raise unknown_name("form", str(form)[:40], FORMS)
    ledger, folder = _standing(session), _new_folder(session, "exports")
    with track.holding(studio.lock):
        track.say(f"writing the {form}")
        if form == "ledger":
            path = _zipped(ledger.path, folder / "ledger.zip", ("ledger.json", "edits", "rows"))
            about = "Unzip it; `erasure log` and the other commands read the folder."
            session.exported = Exported(path=path, about=about, entries=_entries(ledger))
        else:
            session.exported = _published(studio, ledger, form, folder, "an-erased-model", track)
    return session.exported


def _entries(ledger: Ledger) -> tuple[str, ...]:
    return tuple(entry.id for entry in ledger.standing)


def upload(studio: Studio, session: Session, repo: str, token: str, *, private: bool, track: Track) -> str:
    """Upload the whole edited model to the Hub in one commit; return the address of the commit.

    Args:
        studio: The model.
        session: Session of the visitor.
        repo: Repository, "USER/NAME".
        token: Token of the visitor, used once and not stored; a token of the server is never used.
        private: Whether the repository is private.
        track: Progress of the job.

    Raises:
        InputError: There is no token, no entry stands, or the Hub refuses the upload.
    """
    name, secret = limits.text("repository", repo), limits.text("token", token)
    if not secret:
        raise InputError("token: expected one of the Hub with write access, got none. Create one in its settings.")
    check_push(name, secret)
    ledger, folder = _standing(session), _new_folder(session, "upload")
    with track.holding(studio.lock):
        track.say("writing the pipeline")
        _published(studio, ledger, "pipeline", folder, name, track)
    track.say("uploading")
    removed = ", ".join(concept.target for entry in ledger.standing for concept in entry.concepts)
    return push(folder / "model", name, private=private, message=f"{removed} removed", token=secret).url


def _published(studio: Studio, ledger: Ledger, form: str, folder: Path, name: str, track: Track) -> Exported:
    spec, out = Export(format=form), folder / "model"
    prompts = prompts_of(ledger) if form in _ZIPPED else []
    written = publish(
        ledger,
        studio.pipe,
        spec,
        out,
        name=name,
        prompts=prompts,
        sampler=studio.sampler,
        on_progress=staged(track.report, "sampling for the model card"),
    )
    card = _readable((out / "README.md").read_text(encoding="utf-8"))
    about = " ".join(written.notes) or "Exact."
    path = out / spec.file
    if form in _ZIPPED:
        path, about = _zipped(out, folder / "model.zip"), f"{about} Unzip it to use it."
    return Exported(path=path, about=about, entries=_entries(ledger), card=card)


def _readable(card: str) -> str:
    """Return a model card without its metadata and its images."""
    text = card.split("---", 2)[-1] if card.startswith("---") else card
    return re.sub(r"!\[[^]]*\]\([^)]*\)", "", text).strip()


def _standing(session: Session) -> Ledger:
    ledger = session.ledger()
    if ledger is None or not ledger.standing:
        raise InputError("export: expected a standing removal, got none. Erase a concept first.")
    return ledger


def _new_folder(session: Session, name: str) -> Path:
    """Return a new folder in place of the last one of this name, so that a visitor's exports do not fill the disk."""
    shutil.rmtree(session.folder / name, ignore_errors=True)
    folder = session.folder / name / secrets.token_hex(4)
    make_folder(folder)
    return folder


def _zipped(source: Path, target: Path, parts: tuple[str, ...] = ()) -> Path:
    def included(file: Path) -> bool:
        return file.is_file() and (not parts or file.relative_to(source).parts[0] in parts)

    try:
        with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(filter(included, source.rglob("*"))):
                archive.write(file, Path(target.stem) / file.relative_to(source))
    except OSError as error:
        raise InputError(f"export: expected a folder that can be written, got {reason(error)!r}.") from error
    return target
