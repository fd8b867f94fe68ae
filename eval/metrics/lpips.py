"""LPIPS, a perceptual distance of two images (Zhang et al., CVPR 2018, arXiv:1801.03924).

Two variants, both on AlexNet: `lpips_512` resizes images to 512 x 512, the size of Stable Diffusion 1.x; `lpips_64` to
64 x 64, as ESD's script does (eval-scripts/lpips_eval.py of rohitgandikota/erasing), which most erasure papers adopted.
The two are not comparable.
"""

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image, Resampling
from torch import Tensor, nn

from erasure.errors import InputError, MissingExtraError
from erasure.registry import Exactness

from ..features.weights import from_url
from ..images.conversion import Images, as_pil, as_uint8
from ..stats.scores import Score, Setup
from .base import Feed, Metric

Variant = Literal["lpips_512", "lpips_64"]
SIZES: dict[Variant, int] = {"lpips_512": 512, "lpips_64": 64}
UNIT = "LPIPS"


def lpips(net: nn.Module, before: UInt8[Tensor, "n 3 h w"], after: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Return the distance of each pair, 0 for equal images; it does not depend on the batch.

    Args:
        net: LPIPS network of torchmetrics, which takes images in [0, 1] with `normalize=True`.
        before: Images of one model.
        after: Images of the other model, of the same size, in the same order.
    """
    one, other = (images.to(next(net.parameters()).device).float() / 255 for images in (before, after))
    # torchmetrics' update squeezes: a batch of one pair would lose its batch axis.
    return net(one, other, normalize=True).reshape(-1).cpu()


def load_lpips(*, device: str = "cpu", download: bool = False) -> nn.Module:
    """Return torchmetrics' network over AlexNet, with the heads that its package holds.

    Raises:
        MissingExtraError: torchmetrics or torchvision is not installed.
        MissingWeightsError: AlexNet's weights are not in the local cache and may not or cannot be downloaded.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights
    except ImportError as error:
        raise MissingExtraError(
            "lpips: expected the packages torchmetrics and torchvision, got not both. Install erasure[eval]."
        ) from error
    from_url(AlexNet_Weights.DEFAULT.url, "lpips", download=download)
    return LearnedPerceptualImagePatchSimilarity(net_type="alex").net.to(device)


@dataclass(kw_only=True)
class Lpips(Metric):
    """Streaming LPIPS between images of two models for the same prompts and seeds; keeps one number a pair.

    Attributes:
        variant: Variant, which sets the size of the images; Pillow's bilinear filter (antialiased) resizes them
            without regard to their aspect ratio.
        net: LPIPS network; default: AlexNet's from the local cache.
        reference: Description of `before`, for the protocol.
    """

    name: ClassVar[str] = "lpips"
    source: ClassVar[str] = "arXiv:1801.03924"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "before"

    variant: Variant = "lpips_512"
    net: nn.Module = field(default_factory=load_lpips)
    reference: str = ""
    _values: list[float] = field(default_factory=list, init=False, repr=False)

    @torch.no_grad()
    def update(self, before: Images, after: Images) -> "Lpips":
        """Add pairs of images.

        Raises:
            InputError: The numbers of images differ.
        """
        pairs = as_pil(before), as_pil(after)
        if len(pairs[0]) != len(pairs[1]):
            raise InputError(
                f"{self.variant}: expected pairs of images, got {len(pairs[0])} and {len(pairs[1])}."
                " Give the images of both models for the same prompts and seeds."
            )
        if pairs[0]:
            self._values += lpips(self.net, *(as_uint8(self._resized(images)) for images in pairs)).tolist()
        return self

    def scores(self) -> dict[str, Score]:
        return {self.variant: self.compute()}

    def compute(self) -> Score:
        """Return the mean over all pairs so far."""
        return Score.mean(self._values, unit=UNIT, higher_is_better=False, setup=self.setup)

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        return Setup(
            metric=self.variant,
            library=f"torchmetrics {version('torchmetrics')}",
            backbone=f"LPIPS 0.1, {self.net.pnet_type}",
            resize=f"bilinear, antialias, {SIZES[self.variant]}",
            reference=self.reference,
        )

    def _resized(self, images: list[Image]) -> list[Image]:
        size = SIZES[self.variant]
        return [image.resize((size, size), Resampling.BILINEAR) for image in images]
