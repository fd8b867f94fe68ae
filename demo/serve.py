"""The server of the demo. It writes to one temporary folder and makes no connection of its own."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from erasure.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from gradio import Blocks

    from .studio import BeforeAfter, Studio

_UPLOAD = "1kb"
"""Largest upload: the page has none, and Gradio cannot switch it off."""


def serve(
    pipe: "DiffusionPipeline",
    name: str,
    device: str,
    *,
    ledger: Path | None = None,
    share: bool = False,
    port: int | None = None,
) -> "tuple[Blocks, str]":
    """Start the demo; return its page, which `close()` ends, and its address.

    Args:
        pipe: The loaded model.
        name: Name of the model, as for `load_model`.
        device: Device of the model.
        ledger: Ledger shared by all visitors, created if it does not exist; None is one for each.
        share: Request a public address from Gradio.
        port: Port of the server; None is the first free one from 7860.

    Raises:
        MissingExtraError: Gradio is not installed.
        InputError: The port is taken, or a shared ledger would have a public address.
        LedgerError, BaseMismatchError: The ledger is damaged or of another model.
    """
    if share and ledger is not None:
        raise InputError(f"app: expected no --ledger with --share, got {str(ledger)!r}. Strangers could change it.")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads these two when it is imported and when it builds
    from .sessions import Sessions

    sessions = Sessions(ledger)
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.folder / "page")
    try:
        from .page import SCRIPT, STYLE, build, theme
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise MissingExtraError("app: expected Gradio, got none. Install it: pip install 'erasure[app]'.") from error
    from .studio import Studio

    studio = Studio(pipe, name, device)
    if ledger is not None:
        sessions.of("start").open_ledger(pipe, name)
    page = build(studio, sessions, _start(studio))
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
            theme=theme(),
            css_paths=STYLE,
            js=SCRIPT.read_text(encoding="utf-8"),
        )
    except OSError as error:
        raise InputError(f"app: expected a free port, got {port!r}. Give another by --port.") from error
    return page, public or address


def _start(studio: "Studio") -> "BeforeAfter | None":
    """Sample the comparison for a new visitor; None for a model that samples slowly."""
    import threading

    from .actions import first_look
    from .jobs import Track

    if not studio.profile.data.start:
        return None
    pairs = [(prompt, seed) for prompt in studio.to_draw([studio.profile.data.start]) for seed in range(4)]
    return first_look(studio, pairs, Track(threading.Event()))
