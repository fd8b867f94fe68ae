"""Tab "Erase": concepts to remove, the method, and concepts to preserve, beside images before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from erasure.concept import Kind

from .. import actions, limits, views
from ..desk import QUIET, Desk, ErrorsInALine, Job
from ..jobs import Track
from ..results import BeforeAfter
from ..sessions import Session
from ..studio import Studio
from .method import MethodForm

ALL, ONLY = "all other known concepts", "only the chosen ones"
_SEEDS = "0-3"


@dataclass(frozen=True)
class _RequestFields:
    """Components that hold the targets of a removal.

    Attributes:
        concepts: Names of the targets.
        kind: Kind of the targets.
        prompts: Prompts of the comparison.
    """

    concepts: gr.Dropdown
    kind: gr.Radio
    prompts: gr.Textbox


@dataclass(frozen=True)
class _ScopeFields:
    """Components that hold what a target becomes and what is preserved.

    Attributes:
        anchor: Anchor concept.
        extent: Choice between all known concepts and chosen ones.
        keep: Names of the chosen ones.
    """

    anchor: gr.Dropdown
    extent: gr.Radio
    keep: gr.Dropdown


def build(desk: Desk, start: BeforeAfter | None) -> dict[str, Any]:
    """Place the components of the tab; return those that a reloaded page fills again."""
    studio = desk.studio
    first = [studio.profile.data.start] if studio.profile.data.start else []
    with gr.Row(equal_height=False, elem_id="erase-parts"):
        with gr.Column(elem_classes="what"):
            request = _place_request(studio, first)
            job = Job.placed("erase", "Erase")
        with gr.Column(elem_classes="seen-there"):
            basis = gr.HTML(elem_id="erase-basis")
            shown = gr.HTML(_start(start), elem_id="before-after", elem_classes="before-after")
        with gr.Column(elem_classes="how"):
            form = MethodForm.placed(studio.name)
            with gr.Accordion("Anchor and preserved concepts", open=True):
                scope = _place_scope(studio, first)
    desk.standing[basis] = lambda session: views.basis(session.erased and session.erased.entries, session.ledger())
    _connect_suggestions(desk, request, scope, first)

    def work(session: Session, track: Track, *values: Any) -> BeforeAfter:
        targets, kind, becomes, extent, keep, prompts, *chosen = values
        pairs = limits.pairs(prompts, _SEEDS)
        wish = actions.Wish(
            concepts=limits.names("concepts", targets),
            method=limits.name("method", chosen[0]),
            settings=form.settings(*chosen),
            anchor=becomes or "",
            preserve=None if extent == ALL else keep or [],
            kind=None if studio.known else kind,
        )
        actions.erase(studio, session, wish, track)
        session.erased = actions.compare(studio, session, pairs, studio.sampler, track)
        return session.erased

    inputs = [request.concepts, request.kind, scope.anchor, scope.extent, scope.keep, request.prompts]
    desk.runs(
        job,
        [*inputs, *form.inputs],
        [shown],
        work,
        lambda _, comparison: {shown: views.strips(comparison), job.bar: _done(comparison)},
    )
    return {"shown": shown, "start": _start(start)}


def _place_request(studio: Studio, first: list[str]) -> _RequestFields:
    return _RequestFields(
        gr.Dropdown(
            list(studio.known),
            value=first,
            multiselect=True,
            allow_custom_value=True,
            max_choices=limits.CONCEPTS,
            label="Remove",
            info="Choose or type one or more concepts; they are removed one after another.",
            elem_id="concepts",
        ),
        gr.Radio(["object", "style", "identity", "unsafe"], value="object", label="Kind", visible=not studio.known),
        gr.Textbox(
            "\n".join(studio.to_draw(first)),
            lines=2,
            max_lines=limits.PROMPTS,
            label="Prompts",
            info="Prompts to sample before and after, one a line.",
            placeholder="one prompt a line",
            elem_id="look",
        ),
    )


def _place_scope(studio: Studio, first: list[str]) -> _ScopeFields:
    return _ScopeFields(
        gr.Dropdown(
            list(studio.known),
            value=None,
            allow_custom_value=True,
            label="Anchor",
            info="Concept that replaces the target; default: the unconditional prompt.",
            elem_id="anchor",
        ),
        gr.Radio(
            [ALL, ONLY],
            value=ALL if studio.known else ONLY,
            label="Preserve",
            info=_nearest(studio, first, "object"),
            visible=bool(studio.known),
            elem_id="scope",
        ),
        gr.Dropdown(
            list(studio.known),
            value=studio.to_keep(first),
            multiselect=True,
            allow_custom_value=True,
            max_choices=limits.KEPT,
            label="Preserved concepts",
            info="Suggestion: the nearest concepts.",
            visible=not studio.known,
            elem_id="keep",
        ),
    )


def _connect_suggestions(desk: Desk, request: _RequestFields, scope: _ScopeFields, first: list[str]) -> None:
    """Update the suggestions when the targets change, and show the chosen concepts when they apply."""
    studio = desk.studio

    def follow_targets(visitor: gr.Request, key: object, *values: Any) -> list[Any]:
        with ErrorsInALine():
            removed = [concept.target for concept in desk.session(key, visitor).removed()]
            return _suggest(studio, removed, *values)

    suggested = gr.State((studio.to_keep(first), studio.to_draw(first)))
    for changed in (request.concepts, request.kind):
        changed.change(
            follow_targets,
            [desk.key, request.concepts, request.kind, scope.keep, request.prompts, suggested],
            [scope.extent, scope.keep, request.prompts, suggested],
            queue=False,
            **QUIET,
        )
    scope.extent.change(
        lambda extent: gr.update(visible=extent == ONLY), [scope.extent], [scope.keep], queue=False, **QUIET
    )


def _done(comparison: BeforeAfter) -> str:
    return views.note(f"Done. Removed now: {', '.join(comparison.removed)}.", "good")


def _start(start: BeforeAfter | None) -> str:
    if start is None:
        return views.empty("Choose concepts and press Erase: images before and after appear here.")
    return views.strips(start)


def _suggest(
    studio: Studio,
    removed: Sequence[str],
    concepts: object,
    kind: Kind,
    keep: list[str],
    prompts: str,
    suggested: tuple[list[str], list[str]],
) -> list[Any]:
    """Return new suggestions of concepts and prompts, where the visitor has not changed the last ones."""
    targets = limits.names("concepts", concepts)
    to_keep, to_draw = studio.to_keep(targets, kind=kind), studio.to_draw(targets, kind=kind, removed=removed)
    return [
        gr.update(info=_nearest(studio, targets, kind)),
        to_keep if keep == suggested[0] else gr.skip(),
        "\n".join(to_draw) if prompts.splitlines() == suggested[1] and to_draw else gr.skip(),
        (to_keep, to_draw or suggested[1]),
    ]


def _nearest(studio: Studio, targets: list[str], kind: Kind) -> str:
    near = studio.to_keep(targets, 5, kind=kind)
    if not near:
        return "Concepts that must not change."
    known = [name for text in targets if (name := studio.profile.canonical(text))]
    return f"Nearest: {', '.join(near)}; {len(studio.profile.kept_beside(known))} in all."
