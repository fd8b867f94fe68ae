"""Main path in one call: from a pipeline and a few words to an edit."""

from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline

from .arguments import checks_arguments
from .backbones import backbone_of
from .backbones.name_lengths import check_names
from .backbones.usable import check_tokenizers
from .concept import Concept, Kind, distinct
from .edits import Edit
from .erasers import Eraser
from .erasers.uce import UCE
from .progress import OnProgress
from .training.context import FitContext


@checks_arguments
def erase(
    pipe: DiffusionPipeline,
    concepts: str | Concept | Sequence[str | Concept],
    *,
    eraser: Eraser | None = None,
    anchor: str = "",
    preserve: Sequence[str] = (),
    kind: Kind = "object",
    aliases: Sequence[str] = (),
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Edit:
    """Return the edit that removes concepts from a diffusers pipeline, which is left as it was.

    Args:
        pipe: Loaded diffusers pipeline.
        concepts: One concept or several; a text becomes a Concept with the arguments below. One that comes twice
            counts once.
        eraser: Method with its settings; None is UCE().
        anchor: Concept that replaces a target; "" is the unconditional prompt.
        preserve: Concepts that must not change.
        kind: Kind of the targets; it decides the prompt templates.
        aliases: Other names of the target; with several concepts, give each its own Concept.
        seed: Seed of the fit, >= 0.
        on_progress: Receives the progress of the fit.

    Raises:
        InputError: An argument cannot be used, two concepts share a name and differ, a name is too long for the model,
            weights of the model are not finite, or no backbone covers it.
    """
    requests = [concepts] if isinstance(concepts, str | Concept) else concepts
    lists = {"preserve": preserve, "aliases": aliases}
    texts = {field: tuple(value) if isinstance(value, list) else value for field, value in lists.items()}
    shared: Any = {"anchor": anchor, "kind": kind, **texts}
    completed = distinct(
        [request if isinstance(request, Concept) else Concept(target=request, **shared) for request in requests]
    )
    backbone = backbone_of(pipe)
    check_tokenizers(backbone)
    check_names(completed, backbone)
    context = FitContext(backbone=backbone, seed=seed, on_progress=on_progress)
    return (eraser or UCE()).fit(completed, context)
