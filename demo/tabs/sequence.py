"""Tab "Sequence": the ledger, with one removal after another and undo of any of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from erasure.errors import InputError

from ...eval.reports.ledger_report import RemovalRow
from .. import actions, limits, views
from ..desk import AS_SENT, Desk, ErrorsInALine, Job
from ..sessions import Session

_VERIFIED = "Verified: files, replay and base are as recorded."


@dataclass(frozen=True)
class _SequenceFields:
    """Components of the tab.

    Attributes:
        more: Names of concepts to remove.
        adding: Job that removes them.
        back: Choice of an entry to undo.
        undo: Button that undoes it.
        measuring: Job that measures after each entry.
        checking: Job that verifies the ledger.
    """

    more: gr.Dropdown
    adding: Job
    back: gr.Dropdown
    undo: gr.Button
    measuring: Job
    checking: Job


def build(desk: Desk) -> dict[str, Any]:
    """Place the components of the tab."""
    gr.Markdown("Removals are recorded in a ledger: any of them can be undone, in any order.")
    controls = _place(desk)
    table = gr.HTML(elem_id="ledger")
    curve = gr.HTML(elem_id="curve")

    def rows(session: Session) -> Sequence[RemovalRow]:
        return actions.measured_steps(desk.studio, session)

    desk.standing |= {
        table: lambda session: views.removals(session.ledger(), rows(session)),
        curve: lambda session: views.curve(rows(session)),
        controls.back: _choices,
        controls.undo: lambda session: gr.update(interactive=bool(_standing(session))),
    }
    _connect_undo(desk, controls)
    _connect_jobs(desk, controls)
    return {}


def _place(desk: Desk) -> _SequenceFields:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            more = gr.Dropdown(
                list(desk.studio.known),
                multiselect=True,
                allow_custom_value=True,
                max_choices=limits.CONCEPTS,
                label="Remove more",
                info="Removed one after another by UCE with its defaults; the tab Erase has every method.",
                elem_id="add",
            )
            adding = Job.placed("add", "Add")
        with gr.Column(min_width=300):
            back = gr.Dropdown([], label="Undo", info="Entry to undo; the others stay.", elem_id="back")
            undo = gr.Button("Undo", interactive=False, elem_id="undo-go")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            measuring = Job.placed("steps", "Measure each step", variant="secondary")
        with gr.Column(min_width=300):
            checking = Job.placed("verify", "Verify", variant="secondary")
    return _SequenceFields(more, adding, back, undo, measuring, checking)


def _connect_undo(desk: Desk, controls: _SequenceFields) -> None:
    def undone(request: gr.Request, key: object, name: object) -> list[Any]:
        with ErrorsInALine():
            session = desk.session(key, request)
            if not name:
                raise InputError("undo: expected an entry, got none. Choose one.")
            entry = actions.undo(session, name)
            gr.Info(f"{entry.id} was undone.", duration=4, title="")
            updates = desk.again(session)
        return [updates[component] for component in desk.standing]

    def connect() -> None:
        controls.undo.click(undone, [desk.key, controls.back], list(desk.standing), queue=False, **AS_SENT)

    desk.later.append(connect)


def _connect_jobs(desk: Desk, controls: _SequenceFields) -> None:
    studio, more = desk.studio, controls.more
    adding, checking, measuring = controls.adding, controls.checking, controls.measuring
    desk.runs(
        adding,
        [more],
        [more],
        lambda session, track, names: actions.erase(studio, session, actions.Wish(concepts=names or []), track),
        lambda _, removed: {more: [], adding.bar: views.note(f"Removed: {', '.join(removed)}.", "good")},
    )
    desk.runs(
        checking,
        [],
        [],
        lambda session, track: actions.verify(studio, session, track),
        lambda _, problems: {checking.bar: views.note(" ".join(problems) or _VERIFIED, "bad" if problems else "good")},
    )
    desk.runs(
        measuring,
        [],
        [],
        lambda session, track: actions.measure_steps(studio, session, track),
        lambda _, steps: {measuring.bar: views.note(f"Measured: {len(steps)} of {len(steps)} steps.", "good")},
    )


def _standing(session: Session) -> list[tuple[str, str]]:
    ledger = session.ledger()
    entries = [] if ledger is None else ledger.standing
    return [(f"{entry.id} {', '.join(c.target for c in entry.concepts)[:60]}", entry.id) for entry in entries]


def _choices(session: Session) -> dict[str, Any]:
    entries = _standing(session)
    return gr.update(choices=entries, value=entries[-1][1] if entries else None)
