"""The shortest way in: one call from a pipeline and a few words to an edit."""

from collections.abc import Sequence
from typing import Any

from .backbones import backbone_of
from .concept import Concept, Kind
from .edits import Edit
from .erasers import make_eraser
from .progress import OnProgress
from .training.context import FitContext


def erase(
    pipe: Any,
    concepts: str | Concept | Sequence[str | Concept],
    *,
    method: str = "uce",
    anchor: str = "",
    preserve: Sequence[str] = (),
    kind: Kind = "object",
    aliases: Sequence[str] = (),
    seed: int = 0,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Edit:
    """Return the edit that removes `concepts` from a diffusers pipeline, which is left as it was.

    Args:
        pipe: The pipeline.
        concepts: One or several; a text becomes a Concept with the arguments below, a Concept is taken as it is.
        method: The eraser's name.
        anchor: What a target becomes; "" is the unconditional prompt.
        preserve: What must not change.
        kind: Picks the prompt templates.
        aliases: Other names of the target; with several concepts, give each its own Concept.
        seed: Of the fit.
        on_progress: Receives the progress of the fit.
        **settings: Of the eraser.

    Raises:
        UnknownNameError: There is no such method, or it has no such setting.
        InputError: A concept or a setting cannot be used, or no backbone covers the model.
    """
    eraser = make_eraser(method, **settings)
    given = [concepts] if isinstance(concepts, str | Concept) else concepts
    made = [
        concept
        if isinstance(concept, Concept)
        else Concept(target=concept, anchor=anchor, preserve=tuple(preserve), kind=kind, aliases=tuple(aliases))
        for concept in given
    ]
    return eraser.fit(made, FitContext(backbone=backbone_of(pipe), seed=seed, on_progress=on_progress))
