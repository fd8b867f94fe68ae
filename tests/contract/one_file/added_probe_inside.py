"""A probe that amplifies the attention that reads text."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.eval.attacks import Goal
from erasure.eval.attacks.base import Access
from erasure.eval.probes import SampledProbe
from erasure.eval.probes.base import Doses
from erasure.registry import Exactness


@dataclass(frozen=True, kw_only=True)
class AddedProbe(SampledProbe):
    """Layers that read text, scaled by 1 + amount.

    Attributes:
        amount: Relative change of the weights.
    """

    name: ClassVar[str] = "added-probe-inside"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "inside"
    dose: ClassVar[str] = "amount"
    dose_unit: ClassVar[str] = "relative change"

    doses: Doses = (0.1, 0.2)
    amount: Annotated[float, Field(ge=0)] = 0.1

    def prompt_ids(self, backbone: Backbone, goal: Goal) -> Int[Tensor, "m tokens"]:
        return backbone.encode([goal.prompt]).ids

    @contextmanager
    @torch.no_grad()
    def applied_to(self, pipe: DiffusionPipeline, goal: Goal) -> Iterator[None]:
        backbone = backbone_of(pipe)
        weights = backbone.parameters(backbone.sites(reads="text").__contains__).values()
        before = [weight.clone() for weight in weights]
        for weight in weights:
            weight.mul_(1 + self.amount)
        try:
            yield
        finally:
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
