"""Sequence: the ledger, one removal after another, and any of them back again."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from erasure.errors import InputError

from ...eval.reports.ledger_report import RemovalRow
from .. import actions, limits, views
from ..desk import QUIET, Desk, Job, Said
from ..jobs import Track
from ..sessions import Session

_VERIFIED = "Verified: files, replay and base are as recorded."


def build(desk: Desk) -> dict[str, Any]:
    """Put the tab's pieces on the page."""
    studio = desk.studio
    gr.Markdown("Removals are recorded in a ledger: any of them can be taken back, in any order.")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            more = gr.Dropdown(
                list(studio.known),
                multiselect=True,
                allow_custom_value=True,
                max_choices=limits.CONCEPTS,
                label="Remove more",
                info="One after another by UCE with its defaults; Erase has every method.",
                elem_id="add",
            )
            adding = Job.placed("add", "Add")
        with gr.Column(min_width=300):
            back = gr.Dropdown([], label="Take back", info="Any of them; the others stay.", elem_id="back")
            undo = gr.Button("Undo", interactive=False, elem_id="undo-go")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            measuring = Job.placed("steps", "Measure each step", variant="secondary")
        with gr.Column(min_width=300):
            checking = Job.placed("verify", "Verify", variant="secondary")
    table = gr.HTML(elem_id="ledger")
    curve = gr.HTML(elem_id="curve")

    def rows(session: Session) -> Sequence[RemovalRow]:
        return actions.measured_steps(studio, session)

    desk.standing |= {
        table: lambda session: views.removals(session.ledger(), rows(session)),
        curve: lambda session: views.curve(rows(session)),
        back: lambda session: _choices(session),
        undo: lambda session: gr.update(interactive=bool(_standing(session))),
    }

    def undone(request: gr.Request, key: object, name: Any) -> list[Any]:
        session = desk.session(key, request)
        with Said():
            if not name:
                raise InputError("undo: expected a removal, got none. Choose one.")
            entry = actions.undo(session, name)
            gr.Info(f"{entry.id} was taken back.", duration=4, title="")
            drawn = desk.again(session)
        return [drawn[component] for component in desk.standing]

    desk.later.append(
        lambda: undo.click(undone, [desk.key, back], list(desk.standing), queue=False, **QUIET)  # type: ignore[func-returns-value]
    )
    desk.runs(
        adding,
        [more],
        [more],
        lambda session, track, names: actions.erase(studio, session, actions.Wish(concepts=names or []), track),
        lambda _, found: {more: [], adding.bar: views.note(f"Removed: {', '.join(found)}.", "good")},
    )
    desk.runs(
        checking,
        [],
        [],
        lambda session, track: actions.verify(studio, session, track),
        lambda _, found: {checking.bar: views.note(" ".join(found) or _VERIFIED, "bad" if found else "good")},
    )
    desk.runs(
        measuring,
        [],
        [],
        lambda session, track: _measured(desk, session, track),
        lambda _, found: {measuring.bar: views.note(f"Measured: {len(found)} of {len(found)} steps.", "good")},
    )
    return {}


def _measured(desk: Desk, session: Session, track: Track) -> list[RemovalRow]:
    return actions.measure_steps(desk.studio, session, track)


def _standing(session: Session) -> list[tuple[str, str]]:
    ledger = session.ledger()
    entries = [] if ledger is None else ledger.standing
    return [(f"{entry.id} {', '.join(c.target for c in entry.concepts)[:60]}", entry.id) for entry in entries]


def _choices(session: Session) -> Any:
    found = _standing(session)
    return gr.update(choices=found, value=found[-1][1] if found else None)
