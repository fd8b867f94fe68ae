"""Suggestions beside a removal, which a person may change: concepts to preserve and prompts to sample."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from .backbones import backbone_of
from .concept import Kind, normalized
from .graph import ConceptGraph, PromptEncoder
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


def suggested_preserve(
    pipe: DiffusionPipeline, model: str, targets: Sequence[str], n: int, *, kind: Kind = "object"
) -> list[str]:
    """Return the concepts that a removal is most likely to harm.

    Where the model's concepts are known, the targets' siblings, then the nearest of the others; elsewhere the nearest
    of some everyday names.

    Args:
        pipe: Pipeline of the model.
        model: Name of the model, as a run has it.
        targets: Concepts to remove.
        n: Number of concepts, at most.
        kind: Kind of the targets, where the model's profile does not know it.
    """
    backbone, profile = backbone_of(pipe), profile_of(model)
    if not profile.concepts:
        return _nearest(backbone, targets, COMMON[kind], n, kind)
    known = [name for text in targets if (name := profile.canonical(text))]
    candidates = profile.kept_beside(known)
    family = [other for name in known for other in profile.siblings(name) if other in candidates]
    alike = [name for target in known for name in _nearest(backbone, [target], candidates, n, _kind(profile, target))]
    return list(dict.fromkeys([*family, *alike]))[:n]


def suggested_prompts(
    model: str, targets: Sequence[str], near: Sequence[str] = (), *, kind: Kind = "object", removed: Sequence[str] = ()
) -> list[str]:
    """Return prompts that show a removal: one for each target, then one for a neighbour of each.

    Args:
        model: Name of the model, as a run has it.
        targets: Concepts to remove.
        near: Concepts near the targets, the nearest first, for a target whose siblings are not known.
        kind: Kind of the targets, where the model's profile does not know it.
        removed: Concepts that are removed already, which are no neighbours.
    """
    profile = profile_of(model)
    names = [profile.canonical(target) or target for target in targets]
    shown = {normalized(name) for name in (*names, *removed)}
    beside: list[str] = []
    for name in names:
        kept = profile.kept_beside([name])
        siblings = [other for other in profile.siblings(name) if other in kept] if profile.canonical(name) else []
        other = next((other for other in (*siblings, *near, *kept) if normalized(other) not in shown), None)
        beside += [] if other is None else [other]
    prompts = [
        profile.example_prompt(name) if profile.canonical(name) else fill(templates(kind)[2], name)
        for name in (*names, *beside)
    ]
    return list(dict.fromkeys(prompts))


def _nearest(
    encoder: PromptEncoder, targets: Sequence[str], candidates: Sequence[str], n: int, kind: Kind
) -> list[str]:
    names = {normalized(target) for target in targets}
    others = [candidate for candidate in candidates if normalized(candidate) not in names]
    graph = ConceptGraph.of(encoder, [*targets, *others], views=("likeness",), kind=kind)
    return [name for name, _ in graph.nearest(targets, n, view="likeness")]


def _kind(profile: ModelProfile, name: str) -> Kind:
    return profile.kind(name) or "object"  # type: ignore[return-value]
