"""Starting the demo: everything it writes is in one temporary folder, and it calls nobody."""

import os
from pathlib import Path
from typing import Any

from erasure.errors import InputError, MissingExtraError

_UPLOAD = "1kb"
"""Nothing is ever uploaded; Gradio's own door for it stays as good as shut."""


def serve(
    pipe: Any, name: str, device: str, *, ledger: Path | None = None, share: bool = False, port: int | None = None
) -> tuple[Any, str]:
    """Start the demo and return its page, to be closed by `close()`, and its address.

    Args:
        pipe: The loaded model.
        name: What loads it.
        device: Where it is.
        ledger: One ledger that every visitor works on, made if need be; None gives each visitor their own.
        share: Ask Gradio for a public address.
        port: Where it listens; None takes the first free one from 7860.

    Raises:
        MissingExtraError: Gradio is not installed.
        InputError: The port is taken, or the ledger would be open to strangers.
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


def _start(studio: Any) -> Any:
    """Draw what a new visitor sees first; where a picture takes long, nothing."""
    import threading

    from .actions import first_look
    from .jobs import Track

    if not studio.profile.data.start:
        return None
    pairs = [(prompt, seed) for prompt in studio.to_draw([studio.profile.data.start]) for seed in range(4)]
    return first_look(studio, pairs, Track(threading.Event()))
