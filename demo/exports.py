"""What a visitor takes home: files of the session's own folder, made when they are asked for."""

import re
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from erasure.errors import InputError, reason, unknown_name
from erasure.io.files import make_folder
from erasure.ledger import Ledger
from erasure.progress import staged

from ..eval.reports.model_card import prompts_of
from ..eval.reports.publish import publish
from ..pipelines.export.formats import Export
from ..pipelines.export.push import check_push, push
from . import limits
from .jobs import Track
from .sessions import Session
from .studio import Studio

FORMS: Mapping[str, str] = {
    "edit": "what changes, as one safetensors file: exact and small, for erasure.Edit.load",
    "lora": "LoRA weights, for load_lora_weights of any diffusers pipeline of this model",
    "kohya": "LoRA weights under the names that ComfyUI and A1111 read",
    "pipeline": "the whole model with the removals merged in: a diffusers folder with a model card, zipped",
    "checkpoint": "the whole model as one file, for from_single_file, ComfyUI and A1111, with its configs, zipped",
    "ledger": "the record of every removal with its edit, zipped: verify it, undo one or go on elsewhere",
}
_ZIPPED = ("pipeline", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file to take home.

    Attributes:
        path: Where it is.
        about: What there is to say of it.
        card: The model card, as Markdown without its picture and its metadata; "" without one.
    """

    path: Path
    about: str
    card: str = ""


def export(studio: Studio, session: Session, form: str, track: Track) -> Exported:
    """Write what stands in a form of `FORMS`.

    Raises:
        UnknownNameError: There is no such form.
        InputError: Nothing stands, the form cannot hold it, or the folder cannot be written.
    """
    if form not in FORMS:
        raise unknown_name("form", str(form)[:40], FORMS)
    ledger, folder = _standing(session), _new_folder(session)
    with track.holding(studio.lock):
        track.say(f"writing the {form}")
        if form == "ledger":
            parts = ("ledger.json", "edits", "rows")
            path = _zipped(ledger.path, folder / "ledger.zip", parts)
            return Exported(path=path, about="Unzip it; `erasure log` and the others read the folder.")
        return _published(studio, ledger, form, folder, "an-erased-model", track)


def upload(studio: Studio, session: Session, repo: str, token: str, *, private: bool, track: Track) -> str:
    """Write the whole model and upload it to the Hub in one commit; return the commit's address.

    Args:
        studio: The model.
        session: The visitor's.
        repo: "USER/NAME".
        token: The visitor's own; whoever runs the app is never asked for theirs. It is not kept.
        private: Whether nobody else may see it.
        track: Of the job.

    Raises:
        InputError: There is no token, nothing stands, or the Hub does not take it.
    """
    name, secret = limits.text("repository", repo), limits.text("token", token)
    if not secret:
        raise InputError("token: expected one of the Hub with the right to write, got none. Make one in its settings.")
    check_push(name, secret)
    ledger, folder = _standing(session), _new_folder(session)
    with track.holding(studio.lock):
        track.say("writing the pipeline")
        _published(studio, ledger, "pipeline", folder, name, track)
    track.say("uploading")
    removed = ", ".join(concept.target for entry in ledger.standing for concept in entry.concepts)
    return push(folder / "model", name, private=private, message=f"{removed} removed", token=secret).url


def _published(studio: Studio, ledger: Ledger, form: str, folder: Path, name: str, track: Track) -> Exported:
    wanted, out = Export(format=form), folder / "model"
    prompts = prompts_of(ledger) if form in _ZIPPED else []
    written = publish(
        ledger,
        studio.pipe,
        wanted,
        out,
        name=name,
        prompts=prompts,
        sampler=studio.sampler,
        on_progress=staged(track.report, "drawing for the model card"),
    )
    card = _readable((out / "README.md").read_text(encoding="utf-8"))
    about = " ".join(written.notes) or "Exact."
    if form in _ZIPPED:
        return Exported(path=_zipped(out, folder / "model.zip"), about=f"{about} Unzip it to use it.", card=card)
    return Exported(path=out / wanted.file, about=about, card=card)


def _readable(card: str) -> str:
    """Return a card without the metadata at its head and without pictures, which lie beside it."""
    text = card.split("---", 2)[-1] if card.startswith("---") else card
    return re.sub(r"!\[[^]]*\]\([^)]*\)", "", text).strip()


def _standing(session: Session) -> Ledger:
    ledger = session.ledger()
    if ledger is None or not ledger.standing:
        raise InputError("export: expected a removal that stands, got none. Erase a concept first.")
    return ledger


def _new_folder(session: Session) -> Path:
    folder = session.folder / "exports" / secrets.token_hex(4)
    make_folder(folder)
    return folder


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
