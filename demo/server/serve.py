"""The server of the demo. It writes to one temporary folder and makes no connection of its own."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from erasure.errors import InputError, MissingExtraError

from .waiting import WaitingPage

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from gradio import Blocks

    from ..results import BeforeAfter
    from ..studio import Studio

_UPLOAD = "1kb"
"""Largest upload: the page has none, and Gradio cannot switch it off."""


def require_gradio() -> None:
    """Raise MissingExtraError if Gradio is not installed; it is not imported for that, which takes seconds."""
    if find_spec("gradio") is None:
        raise MissingExtraError("app: expected Gradio, got none. Install it: pip install 'erasure[app]'.")


def serve(
    pipe: "DiffusionPipeline",
    name: str,
    device: str,
    *,
    ledger: Path | None = None,
    share: bool = False,
    minutes: float,
    waiting: WaitingPage,
) -> "tuple[Blocks, str]":
    """Start the demo; return its page, which `close()` ends, and its address.

    Args:
        pipe: The loaded model.
        name: Name of the model, as for `load_model`.
        device: Device of the model.
        ledger: Ledger shared by all visitors, created if it does not exist; None is one for each.
        share: Request a public address from Gradio.
        minutes: Longest time that a job may hold the model, in minutes.
        waiting: Waiting page on the port of the demo, which is closed for it.

    Raises:
        InputError: Another program took the port, or Gradio has no public address.
        LedgerError, BaseMismatchError: The ledger is damaged or of another model.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads these two when it is imported and when it builds
    from ..sessions import Sessions

    sessions = Sessions(ledger)
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.folder / "page")
    from ..page import build
    from ..studio import Studio

    studio = Studio(pipe, name, device)
    if ledger is not None:
        sessions.of("start").open_ledger(pipe, name)
    if studio.profile.data.start:
        waiting.say("sampling the first images")
    page = build(studio, sessions, _start(studio), minutes=minutes)
    waiting.close()
    return page, _launched(page, waiting.port, share=share)


def _launched(page: "Blocks", port: int, *, share: bool) -> str:
    """Serve a page on a port, and return its address."""
    from starlette.middleware import Middleware

    from ..limits import BODY
    from ..page import SCRIPT, STYLE, theme
    from .body_limit import BodyLimit

    try:
        _, address, public = page.launch(
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            max_file_size=_UPLOAD,
            footer_links=["api"],
            ssr_mode=False,
            app_kwargs={"middleware": [Middleware(BodyLimit, BODY)]},
            theme=theme(),
            css_paths=STYLE,
            js=SCRIPT.read_text(encoding="utf-8"),
        )
    except OSError as error:
        raise InputError(f"app: expected a free port, got {port}. Give another by --port.") from error
    return public or address


def _start(studio: "Studio") -> "BeforeAfter | None":
    """Sample the comparison for a new visitor; None for a model that samples slowly."""
    import threading

    from ..actions import first_look
    from ..jobs import Track

    if not studio.profile.data.start:
        return None
    pairs = [(prompt, seed) for prompt in studio.to_draw([studio.profile.data.start]) for seed in range(4)]
    return first_look(studio, pairs, Track(threading.Event()))
