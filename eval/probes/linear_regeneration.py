"""Linear regeneration: the input states whose edited projections are nearest to the original's (ours)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.errors import InputError
from erasure.registry import Exactness
from erasure.sampling import sample

from .base import Access, Aim, Models, Outcome, Probe, Subject, Suite

Ridge = Annotated[float, Field(gt=0)]
Role = Literal["keys and values", "values"]


@dataclass(frozen=True, kw_only=True)
class LinearRegeneration(Probe):
    """One solve of the states' width brings back keys and values that a linear map hides; no training.

    For the states e of an honest prompt, original projections W and edited ones W',

        x = (lam I + sum W'^T W')^-1 (sum W'^T W) e

    is the input whose edited keys and values are nearest to the original's. A map that all projections share can be
    inverted; an edit of each layer by itself leaves a compromise. It needs the original's projections, and a sampler
    that takes embeddings.

    Attributes:
        doses: Ridge terms lam relative to the mean diagonal of sum W'^T W', from large to small.
        roles: Projections to match.
    """

    name: ClassVar[str] = "linear-regeneration"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "weights"
    dose_unit: ClassVar[str] = "ridge"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {}})

    doses: Annotated[tuple[Ridge, ...], Field(min_length=1)] = (1e-1, 1e-3)
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("keys and values", "values")

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        with models.original() as pipe:
            backbone = backbone_of(pipe)
            prompts = list(aim.prompts)
            if not torch.equal(backbone.read(prompts).states, backbone.encode(prompts).states):
                raise InputError(
                    f"linear-regeneration: expected projections that read the text encoder's states, got those of"
                    f" {backbone.family}, which reads them through a layer of its own. Use soft-prompt."
                )
            weights = {name: p.detach().float().cpu().clone() for name, p in _projections(backbone, "").items()}
            return {**weights, "states": backbone.encode(prompts).states.float().cpu()}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone = subject.aim, subject.backbone
        read = backbone.encode(list(aim.prompts))
        states = subject.material["states"].double()
        for role in self.roles:
            edited = _projections(backbone, "cross.v" if role == "values" else "")
            for i, dose in enumerate(self.doses):
                subject.report(i, len(self.doses), f"{role}, ridge {dose:g}")
                regenerated = states @ regeneration(edited, subject.material, dose).T
                replaced = read.with_states(regenerated.to(read.states))
                images = sample(subject.pipe, replaced, list(aim.seeds), aim.sampling)
                yield Outcome(dose=dose, part=role, images=images)


def regeneration(
    edited: Mapping[str, Tensor], original: Mapping[str, Tensor], ridge: float
) -> Float[Tensor, "dim dim"]:
    """Return the map from honest states to those whose edited projections are nearest, in float64."""
    pairs = [(weight.detach().double().cpu(), original[name].double()) for name, weight in edited.items()]
    gram = torch.stack([w.T @ w for w, _ in pairs]).sum(0)
    cross = torch.stack([w.T @ other for w, other in pairs]).sum(0)
    lam = ridge * gram.diagonal().mean()
    return torch.linalg.solve(gram + lam * torch.eye(len(gram), dtype=gram.dtype), cross)


def _projections(backbone: Backbone, role: str) -> dict[str, Tensor]:
    roles = (role,) if role else ("cross.k", "cross.v")
    weights = backbone.parameters(backbone.sites(roles, reads="text").__contains__)
    if not weights:
        raise InputError(
            f"linear-regeneration: expected projections that read the text alone, got none in {backbone.family}."
            " Use soft-prompt."
        )
    return dict(weights)
