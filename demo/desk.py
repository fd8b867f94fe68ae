"""What the parts of the page have in common: whose page it is, work that can be stopped, and errors in a line."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder
from PIL.Image import Image

from erasure.errors import ErasureError
from erasure.io.files import make_folder, write_whole
from erasure.progress import Progress

from ..eval.images.ledger_images import as_png
from . import views
from .jobs import StoppedError, Track, followed
from .sessions import Session, Sessions
from .studio import Studio

logger = logging.getLogger(__name__)
Updates = dict[Any, Any]

HEAVY: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Whatever draws or fits: one at a time over all visitors; the others wait in the queue."""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""The page's own events: the API has functions of its own, and the page shows progress itself."""


_TOAST = 300
"""Characters of an error on the page, where a list of all that is known is cut."""

PICTURE: dict[str, Any] = {
    "type": "pil",
    "interactive": False,
    "buttons": ["download", "fullscreen"],
    "min_width": 150,
}
"""How pictures are shown: none of Gradio's buttons that would send one elsewhere."""


def file_of(picture: Image) -> Path:
    """Return a picture as a file among those that Gradio serves, as it is and there whole or not at all.

    Given the picture itself, Gradio writes over the file that an equal one has already, which somebody may be reading
    just then, and as lossy WebP.

    Raises:
        InputError: The place cannot be written.
    """
    content = as_png(picture)
    folder = Path(get_upload_folder()) / hash_bytes(content)
    make_folder(folder)
    write_whole(folder / "image.png", content)
    return folder / "image.png"


@dataclass(kw_only=True)
class Job:
    """The three pieces that stand for a job on the page.

    Attributes:
        name: Tells it from the page's other jobs.
        button: Starts it.
        cancel: Stops it; there only while it runs.
        bar: Shows how far it is.
    """

    name: str
    button: gr.Button
    cancel: gr.Button
    bar: gr.HTML

    @classmethod
    def placed(cls, name: str, label: str, *, variant: str = "primary") -> "Job":
        """Put them on the page, here."""
        with gr.Row(elem_classes="go"):
            button = gr.Button(label, variant=variant, elem_id=f"{name}-go", scale=3)  # type: ignore[arg-type]
            cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{name}-cancel", scale=1)
        return cls(name=name, button=button, cancel=cancel, bar=gr.HTML(elem_id=f"{name}-bar"))

    def busy(self, shown: str) -> Updates:
        """Show that it runs."""
        return {self.button: gr.update(interactive=False), self.cancel: gr.update(visible=True), self.bar: shown}

    def idle(self, shown: str = "") -> Updates:
        """Show that it does not."""
        return {self.button: gr.update(interactive=True), self.cancel: gr.update(visible=False), self.bar: shown}


@dataclass(kw_only=True)
class Desk:
    """The page as all of its parts see it.

    Attributes:
        studio: The model.
        sessions: The visitors.
        key: Holds the visitor's secret in their browser, so that a reloaded page finds its ledger.
        standing: What shows the ledger, and how it is drawn anew after each change.
        later: Connects events, once all pieces are on the page.
    """

    studio: Studio
    sessions: Sessions
    key: gr.BrowserState
    standing: dict[Any, Callable[[Session], Any]] = field(default_factory=dict)
    later: list[Callable[[], None]] = field(default_factory=list)

    def session(self, key: object, request: gr.Request) -> Session:
        """Return the visitor's session; a page without a key yet is known by its connection."""
        return self.sessions.of(f"visitor-{key}" if key else f"page-{request.session_hash}")

    def again(self, session: Session) -> Updates:
        """Return what shows the ledger, drawn anew."""
        return {component: draw(session) for component, draw in self.standing.items()}

    def runs(
        self,
        job: Job,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        work: Callable[..., Any],
        show: Callable[[Session, Any], Updates],
    ) -> None:
        """Start a job by its button: `work(session, track, *inputs)`, shown by `show(session, result)`.

        The rest of the page that shows the ledger is drawn anew after it, whatever came of it.
        """
        pieces = [job.button, job.cancel, job.bar]

        def asked(request: gr.Request, key: object) -> Updates:
            with Said():
                self.session(key, request).stop(str(request.session_hash), job.name).clear()
            return job.busy(views.progress(Progress(0, 0, "waiting for a turn")))

        def running(request: gr.Request, key: object, *values: Any) -> Iterator[Updates]:
            session = self.session(key, request)
            track = Track(session.stop(str(request.session_hash), job.name))
            session.jobs += 1
            try:
                for found in followed(lambda: work(session, track, *values), track):
                    if isinstance(found, Progress):
                        yield {job.bar: views.progress(found)}
                    else:
                        yield {**job.idle(), **self.again(session), **show(session, found)}
            except StoppedError as stopped:
                yield {**job.idle(views.note(str(stopped))), **self.again(session)}
            except Exception as error:
                yield {**job.idle(), **self._after(session)}
                raise in_a_toast(error) from error
            finally:
                session.jobs -= 1

        def stopped(request: gr.Request, key: object) -> Updates:
            self.session(key, request).stop(str(request.session_hash), job.name).set()
            return {job.bar: views.progress(Progress(0, 0, "stopping after this step"))}

        def connect() -> None:
            first = job.button.click(asked, [self.key], pieces, queue=False, **QUIET)
            everything = list(dict.fromkeys([*pieces, *self.standing, *outputs]))
            first.success(running, [self.key, *inputs], everything, **QUIET, **HEAVY)
            job.cancel.click(stopped, [self.key], [job.bar], queue=False, **QUIET)

        self.later.append(connect)

    def _after(self, session: Session) -> Updates:
        """Return the ledger's pieces after an error, which may be the ledger's own."""
        try:
            return self.again(session)
        except ErasureError:
            return {}


def in_a_line(error: Exception, most: int = _TOAST) -> gr.Error:
    """Return an error as a line for a visitor; what is our own fault is logged, and named as such."""
    if isinstance(error, ErasureError):
        text = " ".join(str(error).split())
        short, known, _ = text.partition(" Known: ")
        text = f"{short} Take one that is offered." if known and len(text) > most else text
    else:
        logger.error("a visitor met a fault of ours", exc_info=error)
        text = f"A fault of this app, not yours ({type(error).__name__}). Nothing is lost; try again."
    return gr.Error(text if len(text) <= most else f"{text[: most - 1]}…", print_exception=False, title="")


def in_a_toast(error: Exception) -> gr.Error:
    """Return the same for the page, which takes the text for HTML."""
    line = in_a_line(error)
    line.message = escape(line.message)
    return line


@dataclass(frozen=True)
class Said:
    """Turns an error inside a `with` into a line.

    Attributes:
        how: Makes the line.
    """

    how: Callable[[Exception], gr.Error] = in_a_toast

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise self.how(error) from error
