"""The page: its head, its tabs, and the state of a visitor who returns."""

import re
import secrets
from pathlib import Path
from typing import Any

import gradio as gr

from . import views
from .api import offer
from .desk import QUIET, Desk, ErrorsInALine
from .sessions import Sessions
from .studio import BeforeAfter, Studio
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
_QUEUE = 20
_CACHE = (3600, 7200)
"""Interval and age in seconds at which files written for the page are deleted."""


def build(studio: Studio, sessions: Sessions, start: BeforeAfter | None = None) -> gr.Blocks:
    """Return the page.

    Args:
        studio: The model.
        sessions: Sessions of the visitors.
        start: BeforeAfter shown to a new visitor.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_CACHE, fill_width=True) as page:
        desk = Desk(studio=studio, sessions=sessions, key=gr.BrowserState(None, storage_key="erasure-session"))
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
                measure_tab.build(desk)
            with gr.Tab("Export", id="export"):
                export_tab.build(desk)
        for connect in desk.later:
            connect()

        def entered(request: gr.Request, key: object) -> dict[Any, Any]:
            known = isinstance(key, str) and re.fullmatch(r"[0-9a-f]{32}", key) is not None
            mine = key if known else secrets.token_hex(16)
            with ErrorsInALine():
                session = desk.session(mine, request)
                shown = erase["start"] if session.compared is None else views.strips(session.compared)
                return {
                    desk.key: mine,
                    erase["shown"]: shown,
                    **desk.again(session),
                    **compare_tab.filled(compare, session.compared),
                    **attention_tab.filled(attention, session.attended),
                }

        back = [desk.key, erase["shown"], *desk.standing, *compare.values(), *attention.values()]
        page.load(entered, [desk.key], back, queue=False, **QUIET)

        def left(request: gr.Request) -> None:
            sessions.leave(str(request.session_hash))
            sessions.end(f"api-{request.session_hash}")

        page.unload(left)
        offer(desk)
    page.queue(max_size=_QUEUE, default_concurrency_limit=4, api_open=False)
    return page


def theme() -> gr.themes.Base:
    """Return the colours of the page, and system fonts, which need no download."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        secondary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.stone,
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
