"""Tab "Export": the standing removals as files, or uploaded to the Hub."""

from typing import Any

import gradio as gr

from .. import views
from ..desk import Desk, Job
from ..exports import FORMS, Exported, export, upload
from ..jobs import Track
from ..sessions import Session


def build(desk: Desk) -> dict[str, Any]:
    """Place the components of the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            form = gr.Radio([(about, name) for name, about in FORMS.items()], value="edit", label="As", elem_id="form")
            job = Job.placed("export", "Prepare")
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
            hint = gr.HTML(views.empty("Remove a concept, choose a format and press Prepare: the file appears here."))
            file = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="export-file")
            with gr.Accordion("Model card", open=False, visible=False, elem_id="card") as shown:
                card = gr.Markdown()

    def work(session: Session, track: Track, name: str) -> Exported:
        return export(desk.studio, session, name, track)

    def show(session: Session, exported: Exported) -> dict[Any, Any]:
        size = exported.path.stat().st_size / 2**20
        label = f"Download {exported.path.name} ({size:.1f} MiB)"
        return {
            file: gr.update(value=str(exported.path), label=label, visible=True),
            hint: views.note(exported.about, "good"),
            shown: gr.update(visible=bool(exported.card)),
            card: exported.card,
        }

    def send(session: Session, track: Track, name: str, secret: str, hidden: bool) -> str:
        return upload(desk.studio, session, name, secret, private=hidden, track=track)

    def sent(session: Session, address: str) -> dict[Any, Any]:
        return {hint: views.note(f"Uploaded: {address}", "good"), token: ""}

    desk.runs(job, [form], [hint, file, shown, card], work, show)
    desk.runs(pushing, [repo, token, private], [hint, token], send, sent)
    return {}
