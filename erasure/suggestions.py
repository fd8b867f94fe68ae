"""Suggestions beside a removal, which a person may change: concepts to preserve and prompts to sample."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from .backbones import backbone_of
from .concept import Kind, normalized
from .graph import ConceptGraph, PromptEncoder
from .profile import ModelProfile, profile_of
from .prompts import COMMON, fill, templates


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
