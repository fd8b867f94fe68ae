"""Measure: the quick suite on what stands, with its report."""

from typing import Any

import gradio as gr

from .. import actions, limits, views
from ..actions import Report
from ..desk import Desk, Job
from ..jobs import Track
from ..sessions import Session

_EMPTY = "Remove something first, then press Measure: is it gone, and is the rest still there? It takes some minutes."


def build(desk: Desk) -> dict[str, Any]:
    """Put the tab's pieces on the page."""
    low, high = limits.PER_MODEL
    gr.Markdown(
        "What stands is measured beside the original, the original with a negative prompt, and a destroyed model, on"
        " the same prompts and seeds. It goes on while you look at the other parts."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            pictures = gr.Slider(
                low,
                high,
                value=high,
                step=4,
                label="Pictures a model",
                info=f"{high} is the quick suite; fewer take less time and say less.",
                elem_id="pictures",
            )
        with gr.Column(scale=8, min_width=320):
            job = Job.placed("measure", "Measure")
    shown = gr.HTML(views.empty(_EMPTY), elem_id="measured")
    with gr.Row():
        page = gr.DownloadButton("Download the report", visible=False, elem_id="report-file", min_width=220)
        scores = gr.DownloadButton("Download the numbers", visible=False, elem_id="scores-file", min_width=220)
    report = gr.HTML(elem_id="report")

    def work(session: Session, track: Track, many: float) -> Report:
        return actions.measure(desk.studio, session, limits.whole("pictures", many, low, high), track)

    def show(session: Session, found: Report) -> dict[Any, Any]:
        return {
            shown: views.measured(found),
            page: gr.update(value=str(found.page), visible=True),
            scores: gr.update(value=str(found.scores), visible=True),
            report: views.framed(found.page),
        }

    desk.runs(job, [pictures], [shown, page, scores, report], work, show)
    return {}
