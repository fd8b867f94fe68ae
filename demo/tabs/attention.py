"""Tab "Attention": attention maps of words over the sampling steps, without and with A-STAR."""

from typing import Any

import gradio as gr

from ...eval.images.attention_maps import overlaid
from .. import actions, limits, views
from ..desk import AS_SENT, IMAGE, Desk, ErrorsInALine, Job, file_of
from ..jobs import Track
from ..results import Attended
from ..sessions import Session

_EMPTY = "Name words of the prompt and press Show: their attention maps appear over the image, step by step."
_START = ("a bird and a tree in the snow", "bird, tree")


def build(desk: Desk) -> dict[str, Any]:
    """Place the components of the tab; return those that a reloaded page fills again."""
    studio = desk.studio
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            prompt = gr.Textbox(_START[0], label="Prompt", max_lines=3, elem_id="attention-prompt")
            words = gr.Textbox(
                _START[1], label="Words", info="Words of the prompt, separated by commas.", elem_id="words"
            )
            seed = gr.Number(0, label="Seed", elem_id="attention-seed")
            alpha = gr.Slider(
                0,
                limits.ALPHA,
                value=20,
                step=5,
                label="A-STAR",
                info="Step size of its updates; 0 is plain sampling.",
                elem_id="alpha",
            )
            job = Job.placed("attention", "Show")
        with gr.Column(scale=8, min_width=320):
            hint = gr.HTML(views.empty(_EMPTY), elem_id="attention-hint")
            basis = gr.HTML(elem_id="attention-basis")
            with gr.Group(visible=False) as one:
                with gr.Row():
                    word = gr.Radio([], label="Word", elem_id="word", min_width=200)
                    step = gr.Slider(1, 2, value=1, step=1, label="Step", elem_id="step", min_width=200)
                with gr.Row(equal_height=True):
                    plain = gr.Image(label="Without A-STAR", elem_id="plain", **IMAGE)
                    guided = gr.Image(label="With A-STAR", elem_id="guided", **IMAGE)
                sheet = gr.Image(label="All words, over the steps", elem_id="sheet", **IMAGE)
    pieces = {"hint": hint, "one": one, "word": word, "step": step, "plain": plain, "guided": guided, "sheet": sheet}

    def work(session: Session, track: Track, text: str, named: str, number: float, size: float) -> Attended:
        names = [part for part in (named or "").split(",") if part.strip()]
        chosen = limits.whole("seed", number, 0, limits.SEED)
        alpha = limits.number("A-STAR", size, 0, limits.ALPHA)
        return actions.attend(studio, session, text, names, chosen, alpha, track)

    def moved(request: gr.Request, key: object, name: object, number: object) -> list[Any]:
        with ErrorsInALine():
            attended = desk.session(key, request).attended
            if attended is None:
                return [gr.skip()] * 2
            return _overlays(attended, name, limits.whole("step", number, 1, limits.STEPS))

    desk.standing[basis] = lambda session: views.basis(session.attended and session.attended.entries, session.ledger())
    desk.suggests("attention", [prompt, words], lambda session: list(studio.to_attend(session.removed()) or _START))
    desk.runs(
        job, [prompt, words, seed, alpha], list(pieces.values()), work, lambda _, attended: filled(pieces, attended)
    )
    for piece in (word, step):
        piece.input(moved, [desk.key, word, step], [plain, guided], queue=False, trigger_mode="always_last", **AS_SENT)
    return pieces


def filled(pieces: dict[str, Any], attended: Attended | None) -> dict[Any, Any]:
    """Return the updates of the tab for attention maps; none without maps."""
    if attended is None:
        return {}
    last = len(attended.plain.maps)
    plain, guided = _overlays(attended, attended.names[0], last)
    return {
        pieces["hint"]: gr.update(visible=False),
        pieces["one"]: gr.update(visible=True),
        pieces["word"]: gr.update(choices=list(attended.names), value=attended.names[0]),
        pieces["step"]: gr.update(maximum=last, value=last),
        pieces["plain"]: plain,
        pieces["guided"]: guided,
        pieces["sheet"]: file_of(attended.sheet),
    }


def _overlays(attended: Attended, name: object, number: int) -> list[Any]:
    word = attended.names.index(name) if name in attended.names else 0
    overlays = []
    for seen in (attended.plain, attended.guided):
        steps = sorted(seen.maps)
        step = steps[min(number, len(steps)) - 1]
        overlays.append(file_of(overlaid(views.enlarged(seen.image), seen.maps[step][word])))
    return overlays
