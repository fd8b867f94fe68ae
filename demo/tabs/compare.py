"""Compare: original and erased side by side, with the same seeds."""

from typing import Any

import gradio as gr

from ...eval.images.difference import difference_map
from .. import actions, limits, views
from ..desk import PICTURE, QUIET, Desk, Job, Said, file_of
from ..jobs import Track
from ..sessions import Session
from ..studio import Comparison

_EMPTY = "Draw some pictures: the same prompts and seeds by the original and by what is left after the removals."


def build(desk: Desk) -> dict[str, Any]:
    """Put the tab's pieces on the page; return those that a reloaded page must fill again."""
    studio = desk.studio
    start = "\n".join(studio.profile.data.examples)
    own = studio.sampler
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            prompts = gr.Textbox(
                start,
                lines=3,
                max_lines=limits.PROMPTS,
                label="Prompts",
                info=f"One a line, at most {limits.PROMPTS}.",
                placeholder="a prompt a line",
                elem_id="compare-prompts",
            )
            seeds = gr.Textbox("0-3", label="Seeds", info="As in 0,2 or 0-7; every prompt gets each.", elem_id="seeds")
            steps = gr.Slider(1, limits.STEPS, value=own.steps, step=1, label="Steps", elem_id="steps")
            guidance = gr.Slider(
                0, limits.GUIDANCE, value=own.guidance_scale, step=0.5, label="Guidance", elem_id="guidance"
            )
            job = Job.placed("compare", "Draw both")
        with gr.Column(scale=8, min_width=300):
            hint = gr.HTML(views.empty(_EMPTY), elem_id="compare-hint")
            with gr.Group(visible=False) as one:
                pair = gr.Dropdown([], label="Look at", elem_id="pair")
                what = gr.HTML(elem_id="compare-what", padding=True)
                with gr.Row(equal_height=True):
                    slider = gr.ImageSlider(label="Original | erased: drag", elem_id="slider", **PICTURE)
                    change = gr.Image(label="Difference", elem_id="difference", **PICTURE)
                with gr.Row(equal_height=True):
                    before = gr.Image(label="Original", elem_id="before", **PICTURE)
                    after = gr.Image(label="Erased", elem_id="after", **PICTURE)
            grid = gr.HTML(elem_id="grid")
    pieces = {"hint": hint, "one": one, "pair": pair, "what": what, "slider": slider, "change": change}
    pieces |= {"before": before, "after": after, "grid": grid}

    def work(session: Session, track: Track, text: str, numbers: str, many: float, strength: float) -> Comparison:
        pairs = limits.pairs(text, numbers)
        sampler = studio.sampling(
            limits.whole("steps", many, 1, limits.STEPS), limits.number("guidance", strength, 0, limits.GUIDANCE)
        )
        return actions.compare(studio, session, pairs, sampler, track)

    def chosen(request: gr.Request, key: object, at: object) -> list[Any]:
        with Said():
            found = desk.session(key, request).compared
            if found is None or not isinstance(at, int) or not 0 <= at < len(found.pairs):
                return [gr.skip()] * len(_of_one(pieces))
            shown = _one(pieces, found, at)
        return [shown[piece] for piece in _of_one(pieces)]

    inputs = [prompts, seeds, steps, guidance]
    desk.runs(job, inputs, list(pieces.values()), work, lambda _, found: filled(pieces, found))
    pair.input(chosen, [desk.key, pair], _of_one(pieces), queue=False, **QUIET)
    return pieces


def filled(pieces: dict[str, Any], found: Comparison | None) -> dict[Any, Any]:
    """Return what the tab shows of a comparison; nothing where there is none."""
    if found is None:
        return {}
    choices = [(f"{prompt[:70]}, seed {seed}", at) for at, (prompt, seed) in enumerate(found.pairs)]
    return {
        pieces["hint"]: gr.update(visible=False),
        pieces["one"]: gr.update(visible=True),
        pieces["pair"]: gr.update(choices=choices, value=0),
        pieces["grid"]: views.strips(found),
        **_one(pieces, found, 0),
    }


def _of_one(pieces: dict[str, Any]) -> list[Any]:
    return [pieces[name] for name in ("what", "slider", "change", "before", "after")]


def _one(pieces: dict[str, Any], found: Comparison, at: int) -> dict[Any, Any]:
    before, after = found.before[at], (found.after or found.before)[at]
    old, new = (file_of(views.enlarged(picture)) for picture in (before, after))
    return {
        pieces["what"]: views.about_pair(found, at),
        pieces["slider"]: (old, new),
        pieces["change"]: file_of(views.enlarged(difference_map(before, after))),
        pieces["before"]: old,
        pieces["after"]: new,
    }
