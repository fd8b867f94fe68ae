"""Predictions of a frozen model for latents that are known in advance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Teacher:
    """Predictions of a frozen model, computed for a stretch of coming updates at once.

    They do not depend on the student, and fewer, fuller passes take less time.

    Args:
        predict: Returns the predictions at some indices.
        total: Number of indices.
        batch: Number of indices of one pass, about.
    """

    def __init__(self, predict: Callable[[Sequence[int]], Tensor], total: int, batch: int) -> None:
        self._predict, self._total, self._batch = predict, total, batch
        self._known: dict[int, Tensor] = {}

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """Return the predictions at consecutive indices, in order."""
        if any(i not in self._known for i in indices):
            whole = max(1, self._batch // len(indices)) * len(indices)  # no update's latents are parted
            stretch = range(indices[0], min(indices[0] + whole, self._total))
            with torch.no_grad():
                self._known = dict(zip(stretch, self._predict(stretch), strict=True))
        return torch.stack([self._known[i] for i in indices])
