"""Projection of conflicting gradients: dual-head distillation (arXiv:2411.08937), PCGrad (arXiv:2001.06782).

StableUN harmonises its gradients in the same way (arXiv:2509.20230).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Gradient, GradientMap
from ..student import Leaf
from .base import Transform

_GUARD = 1e-8  # of the mean |g_k|^2: keeps a vanishing g_k from deciding the direction


@dataclass(frozen=True, kw_only=True)
class Conflict(Transform):
    """The main gradient without its part that points against the terms' gradient.

        if <g_e, g_k> < 0:  g_e <- g_e - <g_e, g_k> / (|g_k|^2 + delta) g_k

    Differs from the papers: the terms have priority; theirs is the task loss.

    Attributes:
        per: "all" takes the trained weights as one vector, "tensor" each by itself.
    """

    name: ClassVar[str] = "conflict"
    source: ClassVar[str] = "arXiv:2411.08937"
    exactness: ClassVar[Exactness] = "reconstructed"
    protects: ClassVar[bool] = True

    per: Literal["all", "tensor"] = "all"

    def prepared(self, task: TrainingTask) -> GradientMap:
        return _Projection(self.per)


class _Projection(GradientMap):
    def __init__(self, per: Literal["all", "tensor"]) -> None:
        self._per = per
        self._projected, self._seen, self._cosine = 0, 0, 0.0

    def __call__(self, erase: Gradient, keep: Gradient, step: int) -> tuple[Gradient, Gradient]:
        groups = [list(keep)] if self._per == "all" else [[leaf] for leaf in keep]
        corrected = dict(erase)
        for group in groups:
            corrected |= self._corrected(group, erase, keep)
        return corrected, keep

    def note(self) -> str:
        share = self._projected / max(1, self._seen)
        return f"conflict: cos {self._cosine:.2f}, {share:.0%} of steps projected"

    def _corrected(self, group: Collection[Leaf], erase: Gradient, keep: Gradient) -> dict[Leaf, Tensor]:
        product = _inner(group, erase, keep)
        square = _inner(group, keep, keep)
        size = _inner(group, erase, erase)
        self._seen += 1
        self._cosine = float(product / (square * size).sqrt()) if square > 0 and size > 0 else 0.0
        if product >= 0 or square == 0:
            return {}
        self._projected += 1
        factor = product / (square * (1 + _GUARD))
        return {leaf: erase[leaf] - factor * keep[leaf] for leaf in group}


def _inner(group: Collection[Leaf], one: Gradient, other: Gradient) -> Tensor:
    return torch.stack([(one[leaf] * other[leaf]).sum() for leaf in group]).sum()
