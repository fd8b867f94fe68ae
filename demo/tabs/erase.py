"""Erase: what to remove, how, and what to keep; the pictures before and after beside it."""

from typing import Any

import gradio as gr

from erasure.concept import Kind
from erasure.erasers import eraser_names

from .. import actions, limits, views
from ..desk import QUIET, Desk, Job, Said
from ..forms import Setting, offered, summary
from ..jobs import Track
from ..sessions import Session
from ..studio import Comparison, Studio

DEFAULT = "uce"
ALL, ONLY = "all else it knows", "only what I choose"
_SEEDS = "0-3"


def build(desk: Desk, start: Comparison | None) -> dict[str, Any]:
    """Put the tab's pieces on the page; return those that a reloaded page must fill again."""
    studio = desk.studio
    first = [studio.profile.data.start] if studio.profile.data.start else []
    with gr.Row(equal_height=False, elem_id="erase-parts"):
        with gr.Column(elem_classes="what"):
            concepts = gr.Dropdown(
                list(studio.known),
                value=first,
                multiselect=True,
                allow_custom_value=True,
                max_choices=limits.CONCEPTS,
                label="Remove",
                info="Choose or type one or more; they go one after another.",
                elem_id="concepts",
            )
            kind = gr.Radio(
                ["object", "style", "identity", "unsafe"],
                value="object",
                label="Kind",
                visible=not studio.known,
            )
            prompts = gr.Textbox(
                "\n".join(studio.to_draw(first)),
                lines=2,
                max_lines=limits.PROMPTS,
                label="Look at",
                info="Prompts to draw before and after, one a line.",
                placeholder="a prompt a line",
                elem_id="look",
            )
            job = Job.placed("erase", "Erase")
        with gr.Column(elem_classes="seen-there"):
            shown = gr.HTML(_start(start), elem_id="before-after", elem_classes="before-after")
        with gr.Column(elem_classes="how"):
            method = gr.Radio(
                [(f"{name}: {summary(name)}", name) for name in _methods()],
                value=DEFAULT,
                label="Method",
                elem_id="method",
            )
            fields = {name: _fields(name, studio) for name in _methods()}
            method.change(_opened, [method], [box for box, _ in fields.values()], queue=False, **QUIET)
            with gr.Accordion("What it becomes and what stays", open=True):
                anchor = gr.Dropdown(
                    list(studio.known),
                    value=None,
                    allow_custom_value=True,
                    label="Becomes",
                    info="Leave it empty and the concept becomes nothing.",
                    elem_id="anchor",
                )
                scope = gr.Radio(
                    [ALL, ONLY],
                    value=ALL if studio.known else ONLY,
                    label="Keep",
                    info=_nearest(studio, first, "object"),
                    visible=bool(studio.known),
                    elem_id="scope",
                )
                keep = gr.Dropdown(
                    list(studio.known),
                    value=studio.to_keep(first),
                    multiselect=True,
                    allow_custom_value=True,
                    max_choices=limits.KEPT,
                    label="Keep these",
                    info="Suggested: what is nearest. Change it as you like.",
                    visible=not studio.known,
                    elem_id="keep",
                )
    suggested = gr.State((studio.to_keep(first), studio.to_draw(first)))
    concepts.change(
        lambda *values: _suggest(studio, *values),
        [concepts, kind, keep, prompts, suggested],
        [scope, keep, prompts, suggested],
        queue=False,
        **QUIET,
    )
    kind.change(
        lambda *values: _suggest(studio, *values),
        [concepts, kind, keep, prompts, suggested],
        [scope, keep, prompts, suggested],
        queue=False,
        **QUIET,
    )
    scope.change(lambda chosen: gr.update(visible=chosen == ONLY), [scope], [keep], queue=False, **QUIET)

    inputs = [concepts, kind, method, anchor, scope, keep, prompts]
    settings = [component for _, components in fields.values() for component in components]

    def work(session: Session, track: Track, *values: Any) -> Comparison:
        wanted, of_kind, by, becomes, keeps, kept, look, *given = values
        pairs = limits.pairs(look, _SEEDS)
        wish = actions.Wish(
            concepts=limits.names("concepts", wanted),
            method=by,
            settings=_given(by, studio, given),
            anchor=becomes or "",
            preserve=None if keeps == ALL else kept,
            kind=None if studio.known else of_kind,
        )
        actions.erase(studio, session, wish, track)
        return actions.compare(studio, session, pairs, studio.sampler, track)

    desk.runs(
        job,
        [*inputs, *settings],
        [shown],
        work,
        lambda _, found: {shown: views.strips(found), job.bar: _done(found)},
    )
    return {"shown": shown, "start": _start(start)}


def _done(found: Comparison) -> str:
    return views.note(f"Done. Removed now: {', '.join(found.removed)}.", "good")


def _start(start: Comparison | None) -> str:
    if start is None:
        return views.empty("Choose what to remove and press Erase: the pictures before and after come here.")
    return views.strips(start)


def _fields(method: str, studio: Studio) -> tuple[gr.Column, list[Any]]:
    """Put the settings of a method on the page: the main ones, and the rest folded away."""
    settings = offered(method, studio.name)
    with gr.Column(visible=method == DEFAULT, elem_classes="settings") as box:
        with gr.Row():
            main = {setting.name: _field(method, setting) for setting in settings if setting.main}
        with gr.Accordion("More settings", open=False):
            rest = {setting.name: _field(method, setting) for setting in settings if not setting.main}
    found = main | rest
    return box, [found[setting.name] for setting in settings]


def _field(method: str, setting: Setting) -> Any:
    shared: dict[str, Any] = {"label": setting.name, "info": setting.about, "elem_id": f"{method}-{setting.name}"}
    if setting.kind == "choice":
        return gr.Dropdown(list(setting.choices), value=setting.value, **shared)
    if setting.kind == "switch":
        return gr.Checkbox(setting.value, **shared)
    return gr.Number(setting.value, precision=0 if setting.kind == "whole" else None, min_width=110, **shared)


def _given(method: str, studio: Studio, values: Any) -> dict[str, Any]:
    """Return the settings of the chosen method out of those of all; one that was left empty keeps its default."""
    rest = list(values)
    for name in _methods():
        settings = offered(name, studio.name)
        mine, rest = rest[: len(settings)], rest[len(settings) :]
        if name == method:
            return {
                setting.name: value
                for setting, value in zip(settings, mine, strict=True)
                if value is not None and value != setting.value
            }
    return {}


def _methods() -> list[str]:
    """Return the erasers, the one to start from first."""
    return sorted(eraser_names(), key=lambda name: name != DEFAULT)


def _opened(method: str) -> list[Any]:
    return [gr.update(visible=name == method) for name in _methods()]


def _suggest(studio: Studio, concepts: Any, kind: Kind, keep: Any, prompts: str, suggested: Any) -> list[Any]:
    """Suggest anew what to keep and to draw, where the visitor has not changed the last suggestion."""
    with Said():
        targets = limits.names("concepts", concepts)
        to_keep, to_draw = studio.to_keep(targets, kind=kind), studio.to_draw(targets, kind=kind)
    return [
        gr.update(info=_nearest(studio, targets, kind)),
        to_keep if keep == suggested[0] else gr.skip(),
        "\n".join(to_draw) if prompts.splitlines() == suggested[1] and to_draw else gr.skip(),
        (to_keep, to_draw or suggested[1]),
    ]


def _nearest(studio: Studio, targets: list[str], kind: Kind) -> str:
    near = studio.to_keep(targets, 5, kind=kind)
    if not near:
        return "What must not change."
    known = [name for text in targets if (name := studio.profile.canonical(text))]
    return f"Nearest: {', '.join(near)}; {len(studio.profile.kept_beside(known))} in all."
