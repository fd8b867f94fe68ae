"""Tab "Compare": images of the original and the edited model side by side, with equal seeds."""

from typing import Any

import gradio as gr

from ...eval.images.difference import difference_map
from .. import actions, limits, views
from ..desk import AS_SENT, IMAGE, Desk, ErrorsInALine, Job, file_of
from ..jobs import Track
from ..results import BeforeAfter
from ..sessions import Session
from ..studio import Studio

_EMPTY = "Nothing is removed yet: both images would be of the original. Remove a concept in the tab Erase."
_READY = "Press Sample: the same prompts and seeds from the original and from the edited model."


def build(desk: Desk) -> dict[str, Any]:
    """Place the components of the tab; return those that a reloaded page fills again."""
    studio = desk.studio
    start = "\n".join(studio.profile.data.examples)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            inputs = _place_inputs(studio, start)
            job = Job.placed("compare", "Sample")
        with gr.Column(scale=8, min_width=300):
            hint = gr.HTML(views.empty(_EMPTY), elem_id="compare-hint")
            basis = gr.HTML(elem_id="compare-basis")
            with gr.Group(visible=False) as one:
                pair = gr.Dropdown([], label="Pair", elem_id="pair")
                what = gr.HTML(elem_id="compare-what", padding=True)
                with gr.Row(equal_height=True):
                    slider = gr.ImageSlider(label="Original | edited: drag", elem_id="slider", **IMAGE)
                    change = gr.Image(label="Difference", elem_id="difference", **IMAGE)
                with gr.Row(equal_height=True):
                    before = gr.Image(label="Original", elem_id="before", **IMAGE)
                    after = gr.Image(label="Edited", elem_id="after", **IMAGE)
            grid = gr.HTML(elem_id="grid")
    pieces = {"hint": hint, "one": one, "pair": pair, "what": what, "slider": slider, "change": change}
    pieces |= {"before": before, "after": after, "grid": grid}
    desk.standing[hint] = lambda session: views.empty(_READY if session.standing() else _EMPTY)
    desk.standing[basis] = lambda session: views.basis(session.compared and session.compared.entries, session.ledger())

    def texts(session: Session) -> list[str]:
        return ["\n".join(studio.to_look_at(session.removed())) or start]

    desk.suggests("compare", inputs[:1], texts)

    def work(session: Session, track: Track, text: str, numbers: str, many: float, strength: float) -> BeforeAfter:
        pairs = limits.pairs(text, numbers)
        sampler = studio.sampling(
            limits.whole("steps", many, 1, limits.STEPS), limits.number("guidance", strength, 0, limits.GUIDANCE)
        )
        return actions.compare(studio, session, pairs, sampler, track)

    def chosen(request: gr.Request, key: object, i: object) -> list[Any]:
        with ErrorsInALine():
            comparison = desk.session(key, request).compared
            if comparison is None or not isinstance(i, int) or not 0 <= i < len(comparison.pairs):
                return [gr.skip()] * len(_of_one(pieces))
            shown = _one(pieces, comparison, i)
        return [shown[piece] for piece in _of_one(pieces)]

    desk.runs(job, inputs, list(pieces.values()), work, lambda _, comparison: filled(pieces, comparison))
    pair.input(chosen, [desk.key, pair], _of_one(pieces), queue=False, **AS_SENT)
    return pieces


def _place_inputs(studio: Studio, start: str) -> list[Any]:
    """Place prompts, seeds, steps and guidance, and return them in this order."""
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
    steps = gr.Slider(1, limits.STEPS, value=studio.sampler.steps, step=1, label="Steps", elem_id="steps")
    guidance = gr.Slider(
        0, limits.GUIDANCE, value=studio.sampler.guidance_scale, step=0.5, label="Guidance", elem_id="guidance"
    )
    return [prompts, seeds, steps, guidance]


def filled(pieces: dict[str, Any], comparison: BeforeAfter | None) -> dict[Any, Any]:
    """Return the updates of the tab for a comparison; none without one."""
    if comparison is None:
        return {}
    choices = [(f"{prompt[:70]}, seed {seed}", i) for i, (prompt, seed) in enumerate(comparison.pairs)]
    return {
        pieces["hint"]: gr.update(visible=False),
        pieces["one"]: gr.update(visible=True),
        pieces["pair"]: gr.update(choices=choices, value=0),
        pieces["grid"]: views.strips(comparison),
        **_one(pieces, comparison, 0),
    }


def _of_one(pieces: dict[str, Any]) -> list[Any]:
    return [pieces[name] for name in ("what", "slider", "change", "before", "after")]


def _one(pieces: dict[str, Any], comparison: BeforeAfter, i: int) -> dict[Any, Any]:
    before, after = comparison.before[i], (comparison.after or comparison.before)[i]
    old, new = (file_of(views.enlarged(image)) for image in (before, after))
    return {
        pieces["what"]: views.about_pair(comparison, i),
        pieces["slider"]: (old, new),
        pieces["change"]: file_of(views.enlarged(difference_map(before, after))),
        pieces["before"]: old,
        pieces["after"]: new,
    }
