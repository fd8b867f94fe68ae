"""Class labels: numbers, never texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from erasure.errors import InputError


def as_indices(labels: Sequence[Any] | np.ndarray, n: int, classes: int, where: str) -> Int[Tensor, " n"]:
    """Return class indices as a tensor.

    A label's text is refused here, not looked up: "English springer" and "english springer" are one class or two
    depending on who wrote the list.

    Args:
        labels: One index in [0, classes) an image.
        n: Images.
        classes: Classes that there are.
        where: The metric, for errors.

    Raises:
        InputError: There are not as many indices as images, or one is no index of a class.
    """
    if len(labels) != n:
        raise InputError(f"{where}: expected a class index an image, got {len(labels)} for {n} images.")
    for label in labels:
        if isinstance(label, bool | np.bool_) or not isinstance(label, int | np.integer) or not 0 <= label < classes:
            raise InputError(f"{where}: expected class indices from 0 to {classes - 1}, got {label!r}.")
    return torch.tensor([int(label) for label in labels], dtype=torch.long)
