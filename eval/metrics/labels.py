"""Class labels as indices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from erasure.errors import InputError


def as_indices(labels: Sequence[Any] | np.ndarray, n: int, classes: int, where: str) -> Int[Tensor, " n"]:
    """Return class indices as a tensor.

    Texts are refused: "English springer" and "english springer" are one class or two, depending on the list.

    Args:
        labels: Index of each image's class, in [0, classes).
        n: Number of images.
        classes: Number of classes.
        where: Name of the metric, for errors.

    Raises:
        InputError: The numbers of indices and images differ, or a label is not an index of a class.
    """
    if len(labels) != n:
        raise InputError(f"{where}: expected a class index an image, got {len(labels)} for {n} images.")
    for label in labels:
        if isinstance(label, bool | np.bool_) or not isinstance(label, int | np.integer) or not 0 <= label < classes:
            raise InputError(f"{where}: expected class indices from 0 to {classes - 1}, got {label!r}.")
    return torch.tensor([int(label) for label in labels], dtype=torch.long)
