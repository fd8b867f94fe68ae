"""The thing that is drawn instead of a concept which has no anchor."""

from functools import partial

import torch
from torch import Tensor

from ...concept import Concept, normalized
from ...errors import InputError
from ...io.tensor_cache import stored
from ...prompts import COMMON, fill, speaks_of, templates
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from .images import ImageSettings, begun_images

_IMAGES = 4
_REACHED = 0.4  # share of the sampling after which the layout of an image stands


def far_anchor(task: TrainingTask, concept: Concept, settings: ImageSettings) -> str:
    """Return the everyday name whose prediction is farthest from the concept's on images that are about to show it.

    Names are those that the concept preserves, as far as they are everyday names of its kind, else all of these,
    without what was removed before. On the way of a concept's sampling, predictions for what resembles it complete the
    concept; the farthest turn away from it (docs/absent.md).

    Args:
        task: Model and concepts; the reference's predictions are compared.
        concept: One of the concepts.
        settings: Sampling of the images.

    Raises:
        InputError: None of these names stays.
    """
    removed = [*task.concepts, *task.context.history.targets]
    everyday = [name for name in COMMON[concept.kind] or COMMON["object"] if not speaks_of(name, removed)]
    known = {normalized(name) for name in everyday}
    names = [name for name in concept.preserve if normalized(name) in known] or everyday
    if not names:
        raise InputError(
            f"anchor: expected one for {concept.target!r}, got none, and no everyday name stays. Name one."
        )
    with task.reference():
        key = ["anchor", task.backbone.fingerprint(), settings.steps, settings.guidance_scale, concept.target, names]
        make = partial(_distances, task, concept, names, settings)
        distances = stored(task.context.history.memory, key, make)["distances"]
    return names[int(distances.argmax())]


@torch.no_grad()
def _distances(task: TrainingTask, concept: Concept, names: list[str], settings: ImageSettings) -> dict[str, Tensor]:
    backbone = task.backbone
    sentences = templates(concept.kind)[:_IMAGES]
    named = backbone.encode([fill(sentence, concept.target) for sentence in sentences])
    reached = round(_REACHED * (settings.steps - 1))
    generator = torch.Generator().manual_seed(task.context.seed)
    latents = begun_images(backbone, named, settings, reached, generator)
    timestep = backbone.schedule.timesteps(settings.steps)[reached].to(backbone.device)
    concepts = scheduled_prediction(backbone, latents, timestep, named)
    distances = []
    for name in names:
        other = backbone.encode([fill(sentence, name) for sentence in sentences])
        apart = scheduled_prediction(backbone, latents, timestep, other) - concepts
        distances.append(apart.flatten(1).norm(dim=1).mean().cpu())
    return {"distances": torch.stack(distances)}
