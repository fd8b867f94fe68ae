"""The API of the demo, for `gradio_client`: the actions of the page as functions. Each client has its own session."""

import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from erasure.erasers import eraser_names

from ..eval.reports.page import embedded
from . import actions, exports, forms, limits
from .desk import HEAVY, Desk, ErrorsInALine, in_a_line
from .jobs import Track
from .sessions import Session

Result = TypeVar("Result")

_LINE = 2000
"""Longest error for a program, in characters."""


def offer(desk: Desk) -> None:
    """Add the API to the page that is being built."""
    api = Api(desk)
    for heavy in (api.erase, api.compare, api.verify, api.attention, api.measure, api.audit, api.export):
        gr.api(heavy, api_name=heavy.__name__, **HEAVY)
    for light in (api.ledger, api.undo, api.suggest, api.methods):
        gr.api(light, api_name=light.__name__)


class Api:
    """Functions of the API; a docstring is the description that a client reads.

    Args:
        desk: The page.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk, self._studio = desk, desk.studio

    def erase(
        self,
        request: gr.Request,
        concepts: list[str],
        method: str = "uce",
        becomes: str = "",
        keep: list[str] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Remove concepts one after another and return the ledger. keep=null preserves what the page preserves."""

        def work(session: Session, track: Track) -> list[dict[str, Any]]:
            wish = actions.Wish(
                concepts=limits.names("concepts", concepts),
                method=limits.name("method", method),
                settings=settings or {},
                anchor=becomes,
                preserve=keep,
            )
            actions.erase(self._studio, session, wish, track)
            return actions.ledger_json(session)

        return self._run(request, "erase", work)

    def compare(
        self,
        request: gr.Request,
        prompts: list[str],
        seeds: str = "0",
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[dict[str, Any]]:
        """Sample each prompt with each seed from the original and the edited model: two images (PNG) and readings."""

        def work(session: Session, track: Track) -> list[dict[str, Any]]:
            default = self._studio.sampler
            scale = default.guidance_scale if guidance is None else guidance
            sampler = self._studio.sampling(
                limits.whole("steps", default.steps if steps is None else steps, 1, limits.STEPS),
                limits.number("guidance", scale, 0, limits.GUIDANCE),
            )
            pairs = limits.pairs(prompts, seeds)
            comparison = actions.compare(self._studio, session, pairs, sampler, track)
            return [
                {
                    "prompt": prompt,
                    "seed": seed,
                    "before": embedded(comparison.before[i]),
                    "after": embedded((comparison.after or comparison.before)[i]),
                    "readings": [asdict(one) for one in comparison.seen[i]],
                }
                for i, (prompt, seed) in enumerate(comparison.pairs)
            ]

        return self._run(request, "compare", work)

    def ledger(self, request: gr.Request) -> list[dict[str, Any]]:
        """Return all entries of the ledger, undone ones included."""
        return self._run(request, "ledger", lambda session, _: actions.ledger_json(session))

    def undo(self, request: gr.Request, entry: str) -> list[dict[str, Any]]:
        """Undo an entry by its id, and return the ledger."""

        def work(session: Session, track: Track) -> list[dict[str, Any]]:
            actions.undo(session, entry)
            return actions.ledger_json(session)

        return self._run(request, "undo", work)

    def verify(self, request: gr.Request) -> list[str]:
        """Return the mismatches of the ledger, one a line; an empty list if all is as recorded."""
        return self._run(request, "verify", lambda session, track: actions.verify(self._studio, session, track))

    def suggest(self, request: gr.Request, concepts: list[str]) -> dict[str, list[str]]:
        """Suggest concepts to preserve beside a removal, and prompts that show it."""
        with ErrorsInALine(_in_a_long_line):
            targets = limits.names("concepts", concepts)
            return {"keep": self._studio.to_keep(targets), "prompts": self._studio.to_draw(targets)}

    def methods(self, request: gr.Request) -> list[dict[str, Any]]:
        """Return the erasers with the settings that a client may set."""
        return [
            {
                "name": name,
                "about": forms.summary(name),
                "settings": [asdict(setting) for setting in forms.offered(name, self._studio.name)],
            }
            for name in eraser_names()
        ]

    def attention(
        self, request: gr.Request, prompt: str, words: list[str], seed: int = 0, alpha: float = 20.0
    ) -> dict[str, Any]:
        """Return the attention maps of words over the steps, without and with A-STAR, as one image (PNG)."""

        def work(session: Session, track: Track) -> dict[str, Any]:
            number = limits.whole("seed", seed, 0, limits.SEED)
            size = limits.number("alpha", alpha, 0, limits.ALPHA)
            attended = actions.attend(self._studio, session, prompt, words, number, size, track)
            return {"words": list(attended.names), "sheet": embedded(attended.sheet)}

        return self._run(request, "attention", work)

    def measure(self, request: gr.Request, images: int = limits.PER_MODEL[1]) -> dict[str, Any]:
        """Evaluate the edited model by the quick suite; return its table and the report as HTML."""

        def work(session: Session, track: Track) -> dict[str, Any]:
            count = limits.whole("images", images, *limits.PER_MODEL)
            report = actions.measure(self._studio, session, count, track)
            return {
                "table": [list(row) for row in report.table],
                "notes": list(report.notes),
                "report": report.page.read_text(encoding="utf-8"),
            }

        return self._run(request, "measure", work)

    def audit(self, request: gr.Request, concept: str) -> dict[str, Any]:
        """Audit a removed concept by the quick suite; return its verdict, what failed, and the ladder as HTML."""

        def work(session: Session, track: Track) -> dict[str, Any]:
            report = actions.audit(self._studio, session, limits.name("concept", concept), track)
            _, (verdict,) = report.table
            return {
                "verdict": verdict,
                "notes": list(report.notes),
                "report": report.page.read_text(encoding="utf-8"),
            }

        return self._run(request, "audit", work)

    def export(self, request: gr.Request, form: str = "edit") -> dict[str, Any]:
        """Return the standing removals as a file: edit, lora, kohya, pipeline, checkpoint or ledger."""

        def work(session: Session, track: Track) -> dict[str, Any]:
            exported = exports.export(self._studio, session, form, track)
            served = save_file_to_cache(exported.path, cache_dir=self._desk.key.GRADIO_CACHE)
            file = gr.FileData(path=served, orig_name=exported.path.name).model_dump()
            return {"file": file, "about": exported.about, "card": exported.card}

        return self._run(request, "export", work)

    def _run(self, request: gr.Request, name: str, work: Callable[[Session, Track], Result]) -> Result:
        """Do the work of a client's call; it ends when the client leaves."""
        page = str(request.session_hash)
        key = f"api-{page}"
        with ErrorsInALine(_in_a_long_line):
            session = self._desk.sessions.of(key)
            stop: threading.Event = session.stop(page, name)
            stop.clear()
            if self._desk.sessions.has_left(page):  # between the queue's start of the job and here
                stop.set()
            try:
                with session.working():
                    return work(session, Track(stop, self._desk.minutes))
            finally:
                if stop.is_set():  # the client has left while the job ran
                    self._desk.sessions.end(key)


def _in_a_long_line(error: Exception) -> gr.Error:
    return in_a_line(error, _LINE)
