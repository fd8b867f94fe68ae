"""Models of videos: their words are removed by closed forms and exported; videos are not sampled here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from torch import Tensor

from ..errors import InputError
from .base import Ability
from .conditioning import Conditioning
from .declared import DeclaredTransformer


@dataclass(frozen=True, eq=False)
class VideoTransformer(DeclaredTransformer):
    """Base of the families; `predict` is that of a video of one frame.

    Attributes:
        scale_name: Name of the pipeline's number of pixels along a side of a latent.
        side: Height and width of the latents at the pipeline's own size.
    """

    abilities: ClassVar[frozenset[Ability]] = frozenset(("lora", "low memory"))
    scale_name: ClassVar[str] = "vae_scale_factor_spatial"
    side: ClassVar[Sequence[int]] = (60, 104)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        default = getattr(self.pipe, "default_sample_size", None)
        sides = self.side if default is None else (default, default)
        scale = getattr(self.pipe, self.scale_name)
        rows, columns = (
            side if size is None else size // scale for side, size in zip(sides, (height, width), strict=True)
        )
        return (self._config["in_channels"], rows, columns)

    def check_steps(self, steps: int) -> None:
        self._refuse()

    def call_arguments(
        self, latents: Tensor, conditioning: Conditioning, negative: Conditioning | None, guidance_scale: float
    ) -> dict[str, Any]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"sample: expected a model of images, got {self.name}, which makes videos."
            " Remove by a closed form with --no-measure, export, and sample with diffusers."
        )
