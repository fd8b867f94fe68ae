"""Tab "Export": the standing removals as files, or uploaded to the Hub."""

from typing import Any

import gradio as gr

from .. import views
from ..desk import Desk, Job
from ..exports import FORMS, export, upload
from ..jobs import Track
from ..results import Exported
from ..sessions import Session

_EMPTY = "Nothing is removed, so there is nothing to export. Remove a concept in the tab Erase."
_READY = "Choose a format and press Export: the file appears here."


def build(desk: Desk) -> dict[str, Any]:
    """Place the components of the tab; return those that a reloaded page fills again."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            choices = [(f"{name}: {about}", name) for name, about in FORMS.items()]
            form = gr.Radio(choices, value="edit", label="Format", elem_id="form")
            job = Job.placed("export", "Export")
            with gr.Accordion("To the Hugging Face Hub", open=False, elem_id="hub"):
                repo = gr.Textbox(label="Repository", placeholder="USER/NAME", max_length=120, elem_id="repo")
                token = gr.Textbox(
                    label="Your token",
                    info="Token with write access. It is used once, and neither stored nor logged.",
                    type="password",
                    max_length=200,
                    elem_id="token",
                )
                private = gr.Checkbox(label="Private repository", value=True, elem_id="private")
                pushing = Job.placed("push", "Upload the whole model", variant="secondary")
        with gr.Column(scale=6, min_width=320):
            hint = gr.HTML(views.empty(_EMPTY), elem_id="export-hint")
            basis = gr.HTML(elem_id="export-basis")
            file = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="export-file")
            with gr.Accordion("Model card", open=False, visible=False, elem_id="card") as shown:
                card = gr.Markdown()
    pieces = {"file": file, "shown": shown, "card": card}

    def work(session: Session, track: Track, name: str) -> Exported:
        return export(desk.studio, session, name, track)

    def about(session: Session) -> str:
        if session.exported is not None:
            return views.note(session.exported.about, "good")
        return views.empty(_READY if session.standing() else _EMPTY)

    def send(session: Session, track: Track, name: str, secret: str, hidden: bool) -> str:
        return upload(desk.studio, session, name, secret, private=hidden, track=track)

    def sent(session: Session, address: str) -> dict[Any, Any]:
        return {pushing.bar: views.note(f"Uploaded: {address}", "good"), token: ""}

    desk.standing[hint] = about
    desk.standing[basis] = lambda session: views.basis(session.exported and session.exported.entries, session.ledger())
    desk.runs(job, [form], list(pieces.values()), work, lambda _, exported: filled(pieces, exported))
    desk.runs(pushing, [repo, token, private], [token], send, sent)
    return pieces


def filled(pieces: dict[str, Any], exported: Exported | None) -> dict[Any, Any]:
    """Return the updates of the tab for an export; none without one."""
    if exported is None:
        return {}
    size = exported.path.stat().st_size / 2**20
    label = f"Download {exported.path.name} ({size:.1f} MiB)"
    return {
        pieces["file"]: gr.update(value=str(exported.path), label=label, visible=True),
        pieces["shown"]: gr.update(visible=bool(exported.card)),
        pieces["card"]: exported.card,
    }
