"""Pruning by magnitude: the smallest weights are set to 0 (ours; a deployment, no attack)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasure.edits.changes import exchanged
from erasure.registry import Exactness

from .base import Access, Outcome, Probe, Shares, Subject, Suite


@dataclass(frozen=True, kw_only=True)
class Prune(Probe):
    """The smallest weights of each layer of the denoiser are set to 0; kept concepts are sampled at each dose.

    Attributes:
        doses: Shares of each weight's entries, each in (0, 1).
    """

    name: ClassVar[str] = "prune"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "weights"
    dose_unit: ClassVar[str] = "of the weights"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"full": {}})

    doses: Shares = (0.05, 0.1, 0.2, 0.4)

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        parameters = subject.denoiser_weights
        for i, dose in enumerate(self.doses):
            subject.report(i, len(self.doses), f"{100 * dose:g} %")
            with exchanged(parameters, {name: pruned(p.data, dose) for name, p in parameters.items()}):
                images, kept = subject.sampled(), subject.sampled_kept()
            yield Outcome(dose=dose, images=images, kept=kept, label=f"{100 * dose:g} %")


def pruned(weight: Tensor, share: float) -> Tensor:
    """Return a weight with a share of its entries, the smallest, set to 0."""
    n = round(share * weight.numel())
    if n == 0:
        return weight
    bound = torch.kthvalue(weight.abs().flatten(), n).values
    return torch.where(weight.abs() > bound, weight, torch.zeros_like(weight))
