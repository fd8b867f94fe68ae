"""Compare: original and erased side by side, with the same seeds."""

from typing import Any

import gradio as gr

from erasure.eval.difference import difference_map

from . import actions, limits, views
from .desk import QUIET, Desk, Job, said
from .jobs import Track
from .sessions import Session
from .studio import Comparison

_EMPTY = "Draw some pictures: the same prompts and seeds by the original and by what is left after the removals."


def build(desk: Desk) -> dict[str, Any]:
    """Put the tab's pieces on the page; return those that a reloaded page must fill again."""
    studio = desk.studio
    start = "a cat on the beach\na dog on the beach\na house in the snow" if studio.on_tinyworld else ""
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            prompts = gr.Textbox(
                start,
                lines=3,
                max_lines=limits.PROMPTS,
                label="Prompts",
                info=f"One a line, at most {limits.PROMPTS}.",
                placeholder="a prompt a line",
                elem_id="compare-prompts",
            )
            seeds = gr.Textbox(
                "0-3", label="Seeds", info="As in 0,1,2 or 0-7; every prompt gets each.", elem_id="seeds"
            )
            with gr.Row():
                steps = gr.Slider(1, limits.STEPS, value=studio.sampler.steps, step=1, label="Steps", min_width=130)
                guidance = gr.Slider(
                    0, limits.GUIDANCE, value=studio.sampler.guidance_scale, step=0.5, label="Guidance", min_width=130
                )
            job = Job.placed("compare", "Draw both")
        with gr.Column(scale=8, min_width=320):
            hint = gr.HTML(views.empty(_EMPTY), elem_id="compare-hint")
            with gr.Group(visible=False) as one:
                what = gr.HTML(elem_id="compare-what")
                with gr.Row(equal_height=True):
                    slider = gr.ImageSlider(
                        label="Original | erased: drag", type="pil", interactive=False, elem_id="slider", min_width=240
                    )
                    change = gr.Image(
                        label="Difference", type="pil", interactive=False, elem_id="difference", min_width=240
                    )
                with gr.Row(equal_height=True):
                    before = gr.Image(label="Original", type="pil", interactive=False, elem_id="before", min_width=150)
                    after = gr.Image(label="Erased", type="pil", interactive=False, elem_id="after", min_width=150)
            grid = gr.Gallery(
                label="All pictures, erased: choose one to look at above",
                type="pil",
                columns=4,
                height="auto",
                allow_preview=False,
                interactive=False,
                visible=False,
                object_fit="contain",
                buttons=[],
                elem_id="grid",
            )
    pieces = {"hint": hint, "one": one, "what": what, "slider": slider, "change": change}
    pieces |= {"before": before, "after": after, "grid": grid}

    def work(session: Session, track: Track, text: str, numbers: str, many: float, strength: float) -> Comparison:
        pairs = limits.pairs(text, numbers)
        sampler = studio.sampling(
            limits.whole("steps", many, 1, limits.STEPS), limits.number("guidance", strength, 0, limits.GUIDANCE)
        )
        return actions.compare(studio, session, pairs, sampler, track)

    def chosen(request: gr.Request, key: object, event: gr.SelectData) -> list[Any]:
        with said():
            found = desk.session(key, request).compared
            shown = {} if found is None or event.index >= len(found.pairs) else _one(pieces, found, event.index)
        return [shown.get(piece, gr.skip()) for piece in (what, slider, change, before, after)]

    desk.runs(
        job, [prompts, seeds, steps, guidance], list(pieces.values()), work, lambda _, found: filled(pieces, found)
    )
    grid.select(chosen, [desk.key], [what, slider, change, before, after], queue=False, **QUIET)
    return pieces


def filled(pieces: dict[str, Any], found: Comparison | None) -> dict[Any, Any]:
    """Return what the tab shows of a comparison; what to do next where there is none."""
    if found is None or found.after is None:
        return {}
    captions = [
        f"{prompt[:60]}, seed {seed}" + (f": {views.reading_text(seen)}" if seen else "")
        for (prompt, seed), seen in zip(found.pairs, found.seen, strict=True)
    ]
    pictures = [views.enlarged(image) for image in found.after]
    return {
        pieces["hint"]: views.note("" if found.removed else "Nothing is removed yet, so both are the original's."),
        pieces["one"]: gr.update(visible=True),
        pieces["grid"]: gr.update(value=list(zip(pictures, captions, strict=True)), visible=True),
        **_one(pieces, found, 0),
    }


def _one(pieces: dict[str, Any], found: Comparison, at: int) -> dict[Any, Any]:
    before, after = found.before[at], (found.after or found.before)[at]
    old, new = views.enlarged(before), views.enlarged(after)
    return {
        pieces["what"]: views.about_pair(found, at),
        pieces["slider"]: (old, new),
        pieces["change"]: views.enlarged(difference_map(before, after)),
        pieces["before"]: old,
        pieces["after"]: new,
    }
