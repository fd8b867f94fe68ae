"""Tab "Measure": the quick suite on the edited model, with its report."""

from typing import Any

import gradio as gr

from .. import actions, limits, views
from ..actions import Report
from ..desk import Desk, Job
from ..jobs import Track
from ..sessions import Session

_EMPTY = "Remove a concept first, then press Measure: efficacy and specificity of the removals. It takes some minutes."


def build(desk: Desk) -> dict[str, Any]:
    """Place the components of the tab."""
    low, high = limits.PER_MODEL
    gr.Markdown(
        "The edited model is measured beside the original, the original with a negative prompt, and a destroyed model,"
        " on the same prompts and seeds. The measurement continues while you use the other tabs."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            images = gr.Slider(
                low,
                high,
                value=high,
                step=4,
                label="Images a model",
                info=f"{high} is the quick suite; fewer take less time and give wider intervals.",
                elem_id="images",
            )
        with gr.Column(scale=8, min_width=320):
            job = Job.placed("measure", "Measure")
    shown = gr.HTML(views.empty(_EMPTY), elem_id="measured")
    with gr.Row():
        page = gr.DownloadButton("Download the report", visible=False, elem_id="report-file", min_width=220)
        scores = gr.DownloadButton("Download the numbers", visible=False, elem_id="scores-file", min_width=220)
    report = gr.HTML(elem_id="report")

    def work(session: Session, track: Track, many: float) -> Report:
        return actions.measure(desk.studio, session, limits.whole("images", many, low, high), track)

    def show(session: Session, result: Report) -> dict[Any, Any]:
        return {
            shown: views.measured(result),
            page: gr.update(value=str(result.page), visible=True),
            scores: gr.update(value=str(result.scores), visible=True),
            report: views.framed(result.page),
        }

    desk.runs(job, [images], [shown, page, scores, report], work, show)
    return {}
