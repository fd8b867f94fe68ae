"""Tab "Measure": the quick suite on the edited model and the quick audit of a removed concept, with their reports."""

from typing import Any

import gradio as gr

from .. import actions, limits, views
from ..desk import Desk, Job
from ..jobs import Track
from ..results import Report
from ..sessions import Session

_EMPTY = "Nothing is removed, so there is nothing to measure. Remove a concept in the tab Erase."
_NO_AUDIT = "Nothing is removed, so there is nothing to audit. Remove a concept in the tab Erase."
_AUDIT = (
    "Press Audit: is the concept really gone? Every quick probe tries to bring it back, from other words to training on"
    " its images. On two cores it takes about six minutes; what was measured once is kept."
)
_READY = "Press Measure: efficacy and specificity of the removals. It takes some minutes."


def build(desk: Desk) -> tuple[dict[str, Any], dict[str, Any]]:
    """Place the components; return those of the measure and of the audit that a reloaded page fills again."""
    return _place_measure(desk), _place_audit(desk)


def _place_measure(desk: Desk) -> dict[str, Any]:
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
                label="Images per model",
                info=f"{high} is the quick suite; fewer take less time and give wider intervals.",
                elem_id="images",
            )
        with gr.Column(scale=8, min_width=320):
            job = Job.placed("measure", "Measure")
    basis = gr.HTML(elem_id="measure-basis")
    shown = gr.HTML(views.empty(_EMPTY), elem_id="measured")
    with gr.Row():
        page = gr.DownloadButton("Download the report", visible=False, elem_id="report-file", min_width=220)
        scores = gr.DownloadButton("Download the numbers", visible=False, elem_id="scores-file", min_width=220)
    report = gr.HTML(elem_id="report")

    pieces = {"page": page, "scores": scores, "report": report}

    def work(session: Session, track: Track, many: float) -> Report:
        return actions.measure(desk.studio, session, limits.whole("images", many, low, high), track)

    def table(session: Session) -> str:
        if session.measured is not None:
            return views.measured(session.measured)
        return views.empty(_READY if session.standing() else _EMPTY)

    desk.standing[shown] = table
    desk.standing[basis] = lambda session: views.basis(session.measured and session.measured.entries, session.ledger())
    desk.runs(job, [images], list(pieces.values()), work, lambda _, result: filled(pieces, result))
    return pieces


def _place_audit(desk: Desk) -> dict[str, Any]:
    gr.Markdown("### Audit")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            concept = gr.Dropdown([], label="Removed concept", interactive=True, elem_id="audited")
        with gr.Column(scale=8, min_width=320):
            job = Job.placed("audit", "Audit")
    basis = gr.HTML(elem_id="audit-basis")
    verdict = gr.HTML(views.empty(_NO_AUDIT), elem_id="verdict")
    with gr.Row():
        page = gr.DownloadButton("Download the ladder", visible=False, elem_id="ladder-file", min_width=220)
        record = gr.DownloadButton("Download the record", visible=False, elem_id="audit-file", min_width=220)
    ladder = gr.HTML(elem_id="ladder")
    pieces = {"page": page, "scores": record, "report": ladder}

    def work(session: Session, track: Track, name: str | None) -> Report:
        return actions.audit(desk.studio, session, limits.name("concept", name), track)

    def names(session: Session) -> Any:
        ledger = session.ledger()
        removed = [] if ledger is None else [each.target for entry in ledger.standing for each in entry.concepts]
        return gr.update(choices=removed, value=removed[-1] if removed else None)

    def shown(session: Session) -> str:
        if session.audited is not None:
            return views.measured(session.audited)
        return views.empty(_AUDIT if session.standing() else _NO_AUDIT)

    desk.standing[concept] = names
    desk.standing[verdict] = shown
    desk.standing[basis] = lambda session: views.basis(session.audited and session.audited.entries, session.ledger())
    desk.runs(job, [concept], list(pieces.values()), work, lambda _, result: filled(pieces, result))
    return pieces


def filled(pieces: dict[str, Any], result: Report | None) -> dict[Any, Any]:
    """Return the updates of the components of a measure or an audit; none without a result."""
    if result is None:
        return {}
    return {
        pieces["page"]: gr.update(value=str(result.page), visible=True),
        pieces["scores"]: gr.update(value=str(result.scores), visible=True),
        pieces["report"]: views.framed(result.page),
    }
