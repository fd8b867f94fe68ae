"""Form in which the loop of a pipeline asks its denoiser, as each family declares it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SamplingLoop:
    """Classifier-free guidance of a pipeline's loop, and the arguments of its denoiser.

    Attributes:
        unconditional: Place of the unconditional prediction: the "first" or the "last" rows of one call a step, or the
            second of "two calls", the first of which is the prompt's.
        axes: Axis of the images in arguments in which it is not the first; None for a list with an entry for each.
        mask: Name of the text's mask among the arguments, by which texts of different lengths stand in one call; ""
            without one.
        sign: Factor of the denoiser's output that makes it the schedule's; -1 where the pipeline negates it.
    """

    unconditional: Literal["first", "last", "two calls"] = "first"
    axes: Mapping[str, int | None] = field(default_factory=dict[str, int | None])
    mask: str = ""
    sign: Literal[1, -1] = 1
