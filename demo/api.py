"""The same actions for programs: what `gradio_client` calls. Each client has a session of its own."""

import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from erasure.erasers import eraser_names

from . import actions, exports, forms, limits, views
from .desk import HEAVY, Desk, Said, in_a_line
from .jobs import Track
from .sessions import Session

Result = TypeVar("Result")


_LINE = 2000


def _plainly(error: Exception) -> gr.Error:
    return in_a_line(error, _LINE)


def offer(desk: Desk) -> None:
    """Offer the API; called while the page is built."""
    studio = desk.studio

    def session_of(request: gr.Request) -> Session:
        return desk.sessions.of(f"api-{request.session_hash}")

    def done(request: gr.Request, name: str, work: Callable[[Session, Track], Result]) -> Result:
        """Do something for a client; it ends when the client leaves."""
        with Said(_plainly):
            session = session_of(request)
            stop: threading.Event = session.stop(str(request.session_hash), name)
            stop.clear()
            return work(session, Track(stop))

    def erase(
        request: gr.Request,
        concepts: list[str],
        method: str = "uce",
        becomes: str = "",
        keep: list[str] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Remove concepts one after another and return the ledger. keep=null keeps what the page keeps by default."""

        def work(session: Session, track: Track) -> list[dict[str, Any]]:
            wish = actions.Wish(
                concepts=limits.names("concepts", concepts),
                method=limits.name("method", method),
                settings=settings or {},
                anchor=becomes,
                preserve=keep,
            )
            actions.erase(studio, session, wish, track)
            return actions.ledger_json(session)

        return done(request, "erase", work)

    def compare(
        request: gr.Request,
        prompts: list[str],
        seeds: str = "0",
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[dict[str, Any]]:
        """Draw by the original and by what is left: for each prompt and seed both pictures (PNG) and readings."""

        def work(session: Session, track: Track) -> list[dict[str, Any]]:
            own = studio.sampler
            sampler = studio.sampling(
                limits.whole("steps", own.steps if steps is None else steps, 1, limits.STEPS),
                limits.number("guidance", own.guidance_scale if guidance is None else guidance, 0, limits.GUIDANCE),
            )
            found = actions.compare(studio, session, limits.pairs(prompts, seeds), sampler, track)
            return [
                {
                    "prompt": prompt,
                    "seed": seed,
                    "before": views.whole(found.before[at]),
                    "after": views.whole((found.after or found.before)[at]),
                    "readings": [asdict(one) for one in found.seen[at]],
                }
                for at, (prompt, seed) in enumerate(found.pairs)
            ]

        return done(request, "compare", work)

    def ledger(request: gr.Request) -> list[dict[str, Any]]:
        """Return all removals, those undone as well."""
        return done(request, "ledger", lambda session, _: actions.ledger_json(session))

    def undo(request: gr.Request, entry: str) -> list[dict[str, Any]]:
        """Take a removal back by its id, and return the ledger."""

        def work(session: Session, track: Track) -> list[dict[str, Any]]:
            actions.undo(session, entry)
            return actions.ledger_json(session)

        return done(request, "undo", work)

    def verify(request: gr.Request) -> list[str]:
        """Return what is wrong with the ledger, a line each; nothing where all is as recorded."""
        return done(request, "verify", lambda session, track: actions.verify(studio, session, track))

    def suggest(request: gr.Request, concepts: list[str]) -> dict[str, list[str]]:
        """Suggest what to keep beside a removal, and prompts that show it."""
        with Said(_plainly):
            targets = limits.names("concepts", concepts)
            return {"keep": studio.to_keep(targets), "prompts": studio.to_draw(targets)}

    def methods(request: gr.Request) -> list[dict[str, Any]]:
        """Return the erasers with the settings that may be given here."""
        return [
            {
                "name": name,
                "about": forms.summary(name),
                "settings": [asdict(setting) for setting in forms.offered(name, studio.name)],
            }
            for name in eraser_names()
        ]

    def attention(
        request: gr.Request, prompt: str, words: list[str], seed: int = 0, alpha: float = 20.0
    ) -> dict[str, Any]:
        """Draw where words look, without and with A-STAR: one picture (PNG) of all words over the steps."""

        def work(session: Session, track: Track) -> dict[str, Any]:
            number = limits.whole("seed", seed, 0, 2**53)
            size = limits.number("alpha", alpha, 0, 100)
            found = actions.attend(studio, session, prompt, words, number, size, track)
            return {"words": list(found.names), "sheet": views.whole(found.sheet)}

        return done(request, "attention", work)

    def measure(request: gr.Request, pictures: int = limits.PER_MODEL[1]) -> dict[str, Any]:
        """Run the quick suite on what stands; return its table and the report as HTML."""

        def work(session: Session, track: Track) -> dict[str, Any]:
            found = actions.measure(studio, session, limits.whole("pictures", pictures, *limits.PER_MODEL), track)
            return {
                "table": [list(row) for row in found.table],
                "notes": list(found.notes),
                "report": found.page.read_text(encoding="utf-8"),
            }

        return done(request, "measure", work)

    def export(request: gr.Request, form: str = "edit") -> dict[str, Any]:
        """Return what stands as a file: edit, lora, kohya, pipeline, checkpoint or ledger."""

        def work(session: Session, track: Track) -> dict[str, Any]:
            found = exports.export(studio, session, form, track)
            served = save_file_to_cache(found.path, cache_dir=desk.key.GRADIO_CACHE)
            file = gr.FileData(path=served, orig_name=found.path.name).model_dump()
            return {"file": file, "about": found.about, "card": found.card}

        return done(request, "export", work)

    for heavy in (erase, compare, verify, attention, measure, export):
        gr.api(heavy, api_name=heavy.__name__, **HEAVY)
    for light in (ledger, undo, suggest, methods):
        gr.api(light, api_name=light.__name__)
