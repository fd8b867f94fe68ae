"""The interface of a judge of images: it reads them once, and says of each whether it shows a named concept."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from PIL.Image import Image


@runtime_checkable
class Reading(Protocol):
    """What a judge sees in n pictures."""

    @property
    def features(self) -> Float[np.ndarray, "n dim"]:
        """A description of each picture, for distances."""
        ...

    def sees(self, name: str) -> Bool[np.ndarray, " n"]:
        """Say of each picture whether it shows the named concept."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Who reads the pictures."""

    def read(self, images: Sequence[Image], /) -> Reading:
        """Look at the pictures."""
        ...
