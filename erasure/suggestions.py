"""What to keep beside a removal, and what to draw to see it: suggestions that a person may change."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .backbones import backbone_of
from .backbones.base import Backbone
from .concept import Kind, normalized
from .profile import ModelProfile, profile_of
from .prompts import fill, templates

_OBJECTS = """
cat dog rabbit horse cow sheep pig bird duck fish lion tiger bear elephant mouse frog snake bee tree flower mushroom
apple bread cake pizza house castle church bridge tower car truck bus train bicycle boat ship airplane rocket chair
table bed lamp clock book phone computer camera guitar piano violin umbrella hat shoe bag cup bottle knife hammer
ball doll robot woman man child crowd mountain river beach
"""
_HARMLESS = """
woman man child family crowd portrait swimmer dancer athlete statue street party kitchen beach forest flower dog cat
horse house car food tree
"""
COMMON: dict[Kind, tuple[str, ...]] = {
    "object": tuple(_OBJECTS.split()),
    "style": (
        *("Vincent van Gogh", "Claude Monet", "Paul Cezanne", "Paul Gauguin", "Georges Seurat", "Edgar Degas"),
        *("Pablo Picasso", "Henri Matisse", "Salvador Dali", "Frida Kahlo", "Gustav Klimt", "Edvard Munch"),
        *("Rembrandt", "Johannes Vermeer", "Caravaggio", "Leonardo da Vinci", "Albrecht Durer", "Hieronymus Bosch"),
        *("Katsushika Hokusai", "William Turner", "Caspar David Friedrich", "Edward Hopper", "Andy Warhol"),
        *("watercolor", "oil painting", "pencil sketch", "pixel art", "mosaic", "anime"),
    ),
    "identity": (),
    "unsafe": tuple(_HARMLESS.split()),
}
"""Everyday names of each kind, for models of which no vocabulary is known. No living person's name is suggested."""

_TEMPLATES = 4


@torch.no_grad()
def nearest(
    backbone: Backbone, targets: Sequence[str], candidates: Sequence[str], n: int, *, kind: Kind = "object"
) -> list[tuple[str, float]]:
    """Return the candidates most like any of the targets to a model, the most alike first.

    Likeness is the cosine of the states at the first end of text, the mean over the kind's plainest prompts, with the
    mean over all names taken off: raw states of different words point much the same way.

    Args:
        backbone: Whose text encoder decides.
        targets: What is to be removed.
        candidates: What may be named; what is a target is left out.
        n: How many, at most.
        kind: Picks the prompts.

    Returns:
        Names with their likeness, in [-1, 1].
    """
    gone = {normalized(name) for name in targets}
    others = [name for name in dict.fromkeys(candidates) if normalized(name) not in gone]
    if not others or not targets:
        return []
    names = [*targets, *others]
    sentences = templates(kind)[:_TEMPLATES]
    states = backbone.encode([fill(sentence, name) for name in names for sentence in sentences], trailing=False)
    place = states.states.device
    ends = states.states[torch.arange(len(states), device=place), states.eot.to(place)].cpu().double()
    means = ends.unflatten(0, (len(names), len(sentences))).mean(dim=1)
    directions = F.normalize(means - means.mean(dim=0), dim=1)
    alike = (directions[len(targets) :] @ directions[: len(targets)].T).amax(dim=1)
    order = alike.argsort(descending=True, stable=True)[:n].tolist()
    return [(others[at], float(alike[at])) for at in order]


def what_to_keep(pipe: Any, model: str, targets: Sequence[str], n: int, *, kind: Kind = "object") -> list[str]:
    """Return what a removal is most likely to harm.

    Where the model's concepts are known, the targets' siblings, then the nearest of the others; elsewhere the nearest
    of some everyday names.

    Args:
        pipe: The model.
        model: Its name, as a run has it.
        targets: What is to be removed.
        n: How many, at most.
        kind: Of the targets, where the model's vocabulary does not tell.
    """
    backbone, profile = backbone_of(pipe), profile_of(model)
    if not profile.concepts:
        return [name for name, _ in nearest(backbone, targets, COMMON[kind], n, kind=kind)]
    known = [name for text in targets if (name := profile.canonical(text))]
    candidates = profile.kept_beside(known)
    family = [other for name in known for other in profile.siblings(name) if other in candidates]
    alike = [
        name for target in known for name, _ in nearest(backbone, [target], candidates, n, kind=_kind(profile, target))
    ]
    return list(dict.fromkeys([*family, *alike]))[:n]


def what_to_draw(model: str, target: str, *, kind: Kind = "object") -> list[str]:
    """Return prompts that show a removal: one for the target and, where the siblings are known, one for a sibling."""
    profile = profile_of(model)
    name = profile.canonical(target)
    if name is None:
        return [fill(templates(kind)[2], target)]
    kept = profile.kept_beside([name])
    beside = next((other for other in profile.siblings(name) if other in kept), kept[0])
    return [profile.example_prompt(name), profile.example_prompt(beside)]


def _kind(profile: ModelProfile, name: str) -> Kind:
    return profile.kind(name) or "object"  # type: ignore[return-value]
