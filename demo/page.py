"""The page: its head, its tabs, and the state of a visitor who returns."""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from . import limits, views
from .api import offer
from .desk import HEAVY, QUIET, Desk, ErrorsInALine
from .results import BeforeAfter
from .server.job_limit import limit_jobs
from .sessions import Session, Sessions
from .studio import Studio
from .tabs import attention as attention_tab
from .tabs import compare as compare_tab
from .tabs import erase as erase_tab
from .tabs import export as export_tab
from .tabs import measure as measure_tab
from .tabs import sequence as sequence_tab

TITLE = "erasure"
STYLE = Path(__file__).parent / "style.css"
SCRIPT = Path(__file__).parent / "slider.js"
_HEAD = (
    "<header><h1>erasure</h1><p>Remove a concept from a text-to-image model, and compare images of the same prompts"
    " and seeds before and after.</p></header>"
)
_CACHE = (3600, 7200)
"""Interval and age in seconds at which files written for the page are deleted."""


@dataclass(frozen=True)
class _Tabs:
    """Components of each tab that a reloaded page fills again, by name."""

    erase: dict[str, Any]
    compare: dict[str, Any]
    attention: dict[str, Any]
    measure: dict[str, Any]
    audit: dict[str, Any]
    export: dict[str, Any]

    def outputs(self) -> list[Any]:
        """Return the components of all tabs."""
        rest = (self.compare, self.attention, self.measure, self.audit, self.export)
        return [self.erase["shown"], *(piece for pieces in rest for piece in pieces.values())]

    def filled(self, session: Session) -> dict[Any, Any]:
        """Return the updates that show the last results of a session."""
        return {
            self.erase["shown"]: self.erase["start"] if session.erased is None else views.strips(session.erased),
            **compare_tab.filled(self.compare, session.compared),
            **attention_tab.filled(self.attention, session.attended),
            **measure_tab.filled(self.measure, session.measured),
            **measure_tab.filled(self.audit, session.audited),
            **export_tab.filled(self.export, session.exported),
        }


def build(
    studio: Studio, sessions: Sessions, start: BeforeAfter | None = None, *, minutes: float = limits.JOB_MINUTES
) -> gr.Blocks:
    """Return the page.

    Args:
        studio: The model.
        sessions: Sessions of the visitors.
        start: Images shown to a new visitor.
        minutes: Longest time that a job may hold the model, in minutes.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_CACHE, fill_width=True) as page:
        key = gr.BrowserState(None, storage_key="erasure-session")
        desk = Desk(studio=studio, sessions=sessions, key=key, minutes=minutes)
        gr.HTML(_HEAD, elem_id="head")
        state = gr.HTML(views.state(studio.name, None), elem_id="state")
        desk.standing[state] = lambda session: views.state(studio.name, session.ledger())
        with gr.Tabs(elem_id="parts"):
            with gr.Tab("Erase", id="erase"):
                erase = erase_tab.build(desk, start)
            with gr.Tab("Compare", id="compare"):
                compare = compare_tab.build(desk)
            with gr.Tab("Sequence", id="sequence"):
                sequence_tab.build(desk)
            with gr.Tab("Attention", id="attention"):
                attention = attention_tab.build(desk)
            with gr.Tab("Measure", id="measure"):
                measure, audit = measure_tab.build(desk)
            with gr.Tab("Export", id="export"):
                export = export_tab.build(desk)
        tabs = _Tabs(erase, compare, attention, measure, audit, export)
        for connect in desk.later:
            connect()
        _connect_visits(page, desk, tabs)
        offer(desk)
    page.queue(max_size=limits.WAITING_JOBS, default_concurrency_limit=4, api_open=False)
    limit_jobs(page, HEAVY["concurrency_id"], limits.VISITOR_JOBS)
    return page


def _connect_visits(page: gr.Blocks, desk: Desk, tabs: _Tabs) -> None:
    """Show a visitor who returns the results of the session, and end the jobs of a page that is closed."""

    def entered(request: gr.Request, key: object) -> dict[Any, Any]:
        known = isinstance(key, str) and re.fullmatch(r"[0-9a-f]{32}", key) is not None
        mine = key if known else secrets.token_hex(16)
        with ErrorsInALine():
            session = desk.session(mine, request)
            session.typed.clear()
            return {desk.key: mine, **desk.again(session), **tabs.filled(session)}

    def left(request: gr.Request) -> None:
        desk.sessions.leave(str(request.session_hash))
        desk.sessions.end(f"api-{request.session_hash}")

    back = list(dict.fromkeys([desk.key, *tabs.outputs(), *desk.standing]))
    page.load(entered, [desk.key], back, queue=False, **QUIET)
    page.unload(left)


def theme() -> gr.themes.Base:
    """Return the colours of the page, and system fonts, which need no download."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        secondary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.stone,
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
