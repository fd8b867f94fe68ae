"""Transplant: the original's weights are put back, a few units at a time (after ConceptVectors, arXiv:2406.11614)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.edits.changes import exchanged
from erasure.registry import Exactness

from .base import Access, Aim, Models, Outcome, Probe, Subject

UpToAll = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Transplant(Probe):
    """Output units of the denoiser whose weights differ from the original's get the original's, the most changed first.

    A unit is a row of a weight; rows are ranked by |W_row - W0_row| / |W0_row|, over all weights. A removal that a
    small share undoes is a patch over knowledge that is still there. The whole share is the original, whatever was
    removed in the denoiser, so the half-dose is the number to read. Kept concepts are sampled at each dose. A removal
    that leaves the denoiser alone (in the text encoder, or during the sampling) is not judged by it.

    A separately trained model has no units in common with the original, so no gold is read; the floor is the plain
    prompt. A copy of the original's weights lies in the audit's cache.

    Differs from the paper: the units are those that the removal changed most, not those that carry the concept.

    Attributes:
        doses: Shares of the changed units, each in (0, 1].
    """

    name: ClassVar[str] = "transplant"
    source: ClassVar[str] = "arXiv:2406.11614"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "weights"
    dose_unit: ClassVar[str] = "of the changed units"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (0.1,)})

    doses: Annotated[tuple[UpToAll, ...], Field(min_length=1)] = (0.01, 0.03, 0.1, 0.3)

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        with models.original() as pipe:
            weights = Subject(pipe=pipe, aim=aim).denoiser_weights
            return {name: weight.detach().cpu().clone() for name, weight in weights.items()}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        weights = {name: p.data.cpu() for name, p in subject.denoiser_weights.items()}
        chosen = [most_changed(weights, subject.material, dose) for dose in self.doses]
        for i, (dose, rows) in enumerate(zip(self.doses, chosen, strict=True)):
            subject.report(i, len(self.doses), f"{100 * dose:g} %")
            mixed = {
                name: torch.where(
                    mask.reshape(-1, *[1] * (weights[name].ndim - 1)), subject.material[name], weights[name]
                )
                for name, mask in rows.items()
                if bool(mask.any())
            }
            parameters = backbone_of(subject.pipe).parameters(mixed.__contains__)
            with exchanged(parameters, mixed):
                images, kept = subject.sampled(), subject.sampled_kept()
            yield Outcome(dose=dose, images=images, kept=kept, comparable=False, label=f"{100 * dose:g} %")


def most_changed(
    weights: Mapping[str, Tensor], original: Mapping[str, Tensor], share: float
) -> dict[str, Bool[Tensor, " rows"]]:
    """Return the rows of each weight that are among a share of all changed rows, those that changed most.

    Args:
        weights: Weights by name.
        original: The original's.
        share: Share of the changed rows, in (0, 1]; at least one row, if one changed.
    """
    changes = {}
    for name, weight in weights.items():
        before = original[name].float().flatten(1)
        moved = (weight.float().flatten(1) - before).norm(dim=1)
        length = before.norm(dim=1)
        changes[name] = torch.where(moved > 0, moved / length.clamp(min=1e-12), torch.zeros_like(moved))
    every = torch.cat(list(changes.values()))
    changed = int((every > 0).sum())
    if not changed:
        return {name: torch.zeros_like(each, dtype=torch.bool) for name, each in changes.items()}
    # Ties fall to the rows that come first, so that equal shares are equal sets.
    ranks = torch.empty_like(every, dtype=torch.long)
    ranks[every.argsort(descending=True, stable=True)] = torch.arange(len(every))
    picked = ranks < max(1, round(share * changed))
    return dict(zip(changes, picked.split([len(each) for each in changes.values()]), strict=True))
