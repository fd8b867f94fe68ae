"""The page as its tabs share it: the visitor's session, jobs that can be stopped, and errors on one line."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder
from PIL.Image import Image

from erasure.errors import ErasureError
from erasure.io.files import make_folder, write_whole
from erasure.io.text import in_html
from erasure.progress import Progress, StoppedError

from ..eval.images.png import as_png
from . import limits, views
from .jobs import Track, followed
from .sessions import Session, Sessions
from .studio import Studio

logger = logging.getLogger(__name__)
Updates = dict[Any, Any]

HEAVY: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Options of an event that samples or fits: one at a time over all visitors; the others wait in the queue."""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Options of an event of the page: hidden from the API, and without Gradio's own progress."""
AS_SENT: dict[str, Any] = {**QUIET, "preprocess": False}
"""Options of an event with a choice that depends on the session.

Gradio compares it with the choices that the page has, or began with where the connection was lost meanwhile, and would
refuse it; the function compares it with the session instead.
"""


_TOAST = 300
"""Longest error on the page, in characters; a list of known names is cut."""

IMAGE: dict[str, Any] = {
    "type": "pil",
    "interactive": False,
    "buttons": ["download", "fullscreen"],
    "min_width": 150,
}
"""Options of an image component: without Gradio's buttons that upload the image."""


def file_of(image: Image) -> Path:
    """Write an image as a PNG file among those that Gradio serves, atomically.

    Gradio itself would write it as lossy WebP, over the file of an equal image that another request may be reading.

    Raises:
        InputError: The folder cannot be written.
    """
    content = as_png(image)
    folder = Path(get_upload_folder()) / hash_bytes(content)
    make_folder(folder)
    write_whole(folder / "image.png", content)
    return folder / "image.png"


@dataclass(kw_only=True)
class Job:
    """The components of a job on the page.

    Attributes:
        name: Name of the job, unique on the page.
        button: Button that starts the job.
        cancel: Button that stops the job; visible while it runs.
        bar: Progress of the job.
    """

    name: str
    button: gr.Button
    cancel: gr.Button
    bar: gr.HTML

    @classmethod
    def placed(cls, name: str, label: str, *, variant: str = "primary") -> "Job":
        """Place the components at this position of the page."""
        with gr.Row(elem_classes="go"):
            button = gr.Button(label, variant=variant, elem_id=f"{name}-go", scale=3)  # type: ignore[arg-type]
            cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{name}-cancel", scale=1)
        return cls(name=name, button=button, cancel=cancel, bar=gr.HTML(elem_id=f"{name}-bar"))

    def busy(self, shown: str) -> Updates:
        """Return the updates of a job that runs."""
        cancel = gr.update(visible=True, value="Cancel", interactive=True)
        return {self.button: gr.update(interactive=False), self.cancel: cancel, self.bar: shown}

    def idle(self, shown: str = "") -> Updates:
        """Return the updates of a job that does not run."""
        return {self.button: gr.update(interactive=True), self.cancel: gr.update(visible=False), self.bar: shown}


@dataclass(kw_only=True)
class Desk:
    """The page as its tabs share it.

    Attributes:
        studio: The model.
        sessions: Sessions of the visitors.
        key: Secret of the visitor, stored in their browser, so that a reloaded page has the same session.
        minutes: Longest time that a job may hold the model, in minutes.
        standing: Components that show the ledger, each with the function that renders it.
        later: Functions that connect events once all components are on the page.
    """

    studio: Studio
    sessions: Sessions
    key: gr.BrowserState
    minutes: float = limits.JOB_MINUTES
    standing: dict[Any, Callable[[Session], Any]] = field(default_factory=dict)
    later: list[Callable[[], None]] = field(default_factory=list)

    def session(self, key: object, request: gr.Request) -> Session:
        """Return the session of a visitor: by their key, or by their connection before they have one."""
        return self.sessions.of(f"visitor-{key}" if key else f"page-{request.session_hash}")

    def again(self, session: Session) -> Updates:
        """Return the components that show the ledger, rendered again."""
        return {component: draw(session) for component, draw in self.standing.items()}

    def suggests(self, name: str, fields: Sequence[gr.Textbox], texts: Callable[[Session], list[str]]) -> None:
        """Let the texts of some fields follow the ledger, as long as the visitor has not typed one of their own."""

        def follow(i: int, session: Session) -> Any:
            if name in session.typed:
                return gr.skip()
            session.suggested[name] = texts(session)
            return session.suggested[name][i]

        def noticed(request: gr.Request, key: object, *values: object) -> None:
            with ErrorsInALine():
                session = self.session(key, request)
            if list(values) == session.suggested.get(name):
                session.typed.discard(name)
            else:
                session.typed.add(name)

        self.standing |= {component: partial(follow, i) for i, component in enumerate(fields)}
        for component in fields:
            component.blur(noticed, [self.key, *fields], None, queue=False, **QUIET)

    def runs(
        self,
        job: Job,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        work: Callable[..., Any],
        show: Callable[[Session, Any], Updates],
    ) -> None:
        """Start a job by its button: `work(session, track, *inputs)`, shown by `show(session, result)`.

        The components that show the ledger are rendered again after it, also after an error.
        """
        pieces = [job.button, job.cancel, job.bar]

        def started(request: gr.Request, key: object) -> Updates:
            with ErrorsInALine():
                self.session(key, request).stop(str(request.session_hash), job.name).clear()
            return job.busy(views.progress(Progress(0, 0, "waiting for a turn")))

        def running(request: gr.Request, key: object, *values: object) -> Iterator[Updates]:
            with ErrorsInALine():
                session = self.session(key, request)
            track = Track(session.stop(str(request.session_hash), job.name), self.minutes)
            with session.working():
                try:
                    for item in followed(lambda: work(session, track, *values), track):
                        if isinstance(item, Progress):
                            yield {job.bar: views.progress(item)}
                        else:
                            yield {**job.idle(), **self.again(session), **show(session, item)}
                except StoppedError as stopped:
                    yield {**job.idle(views.note(str(stopped))), **self._after(session)}
                except Exception as error:
                    yield {**job.idle(views.note(in_a_line(error).message, "bad")), **self._after(session)}

        def stopped(request: gr.Request, key: object) -> Updates:
            with ErrorsInALine():
                self.session(key, request).stop(str(request.session_hash), job.name).set()
            # Not the bar: the job's end may reach the page before this does, and would be written over.
            return {job.cancel: gr.update(value="Stopping", interactive=False)}

        def connect() -> None:
            first = job.button.click(started, [self.key], pieces, queue=False, **QUIET)
            everything = list(dict.fromkeys([*pieces, *self.standing, *outputs]))
            second = first.success(running, [self.key, *inputs], everything, **AS_SENT, **HEAVY)
            # Gradio itself refuses a full queue and a value that a component cannot hold; it says which in a toast.
            second.failure(lambda: job.idle(), None, pieces, queue=False, **QUIET)
            job.cancel.click(stopped, [self.key], [job.cancel], queue=False, **QUIET)

        self.later.append(connect)

    def _after(self, session: Session) -> Updates:
        """Return the components that show the ledger after an error; none if the ledger itself is damaged."""
        try:
            return self.again(session)
        except ErasureError:
            return {}


def in_a_line(error: Exception, most: int = _TOAST) -> gr.Error:
    """Return an error as one line for a visitor; an unexpected error is logged, and reported as a fault of the app."""
    if isinstance(error, torch.OutOfMemoryError):
        text = "The device has no memory left for this job. Take fewer images or a smaller batch size."
    elif isinstance(error, ErasureError):
        text = " ".join(str(error).split())
        short, known, _ = text.partition(" Known: ")
        text = f"{short} Choose one of the list." if known and len(text) > most else text
    else:
        logger.error("unexpected error in a request", exc_info=error)
        text = f"A fault of this app, not yours ({type(error).__name__}). Nothing is lost; try again."
    return gr.Error(text if len(text) <= most else f"{text[: most - 1]}…", print_exception=False, title="")


def in_a_toast(error: Exception) -> gr.Error:
    """Return an error as one line for the page, which renders text as HTML."""
    line = in_a_line(error)
    line.message = in_html(line.message)
    return line


@dataclass(frozen=True)
class ErrorsInALine:
    """Context that turns an error inside it into one line.

    Attributes:
        line: Function that turns the error into a line.
    """

    line: Callable[[Exception], gr.Error] = in_a_toast

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise self.line(error) from error
