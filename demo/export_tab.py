"""Export: what stands, to take home."""

from pathlib import Path
from typing import Any

import gradio as gr

from . import views
from .desk import Desk, Job
from .exports import FORMS, export
from .jobs import Track
from .sessions import Session


def build(desk: Desk) -> dict[str, Any]:
    """Put the tab's pieces on the page."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            form = gr.Radio([(about, name) for name, about in FORMS.items()], value="edit", label="As", elem_id="form")
            job = Job.placed("export", "Prepare")
        with gr.Column(scale=6, min_width=320):
            hint = gr.HTML(views.empty("Remove something, choose a form and press Prepare: the file comes here."))
            file = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="export-file")

    def work(session: Session, track: Track, name: str) -> tuple[Path, str]:
        return export(desk.studio, session, name, track)

    def show(session: Session, found: tuple[Path, str]) -> dict[Any, Any]:
        path, about = found
        size = path.stat().st_size / 2**20
        return {
            file: gr.update(value=str(path), label=f"Download {path.name} ({size:.1f} MiB)", visible=True),
            hint: views.note(about, "good"),
        }

    desk.runs(job, [form], [hint, file], work, show)
    return {}
