"""Image features for distances between sets and for similarities, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BatchFeature

from erasure.errors import InputError, MissingExtraError, unknown_name
from erasure.tinyworld.judge import WorldClip

from ..images.conversion import Images, as_pil, as_uint8
from ..stats.scores import Setup
from .weights import from_hub, from_url, model_from_hub, oracle_name, world_clip_name

Features = Float[Tensor, "_ _"] | Float[np.ndarray, "_ _"]
"""One row an image."""

INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
DINOV2 = "facebook/dinov2-large"  # ViT-L/14, of Stein et al., NeurIPS 2023, arXiv:2306.04675
DINO = "facebook/dino-vits16"  # ViT-S/16, of DreamBooth, arXiv:2208.12242
NAMES = (
    "inception",
    "inception-antialias",
    "clip:MODEL:PRETRAINED",
    "dinov2",
    "dino",
    "hub:REPOSITORY",
    "tinyworld-oracle",
    "tinyworld-judge",
)


@runtime_checkable
class Extractor(Protocol):
    """Function from images to features."""

    def __call__(self, images: Images, /) -> Float[Tensor, "n dim"]:
        """Return one row an image, float32 on the CPU."""
        ...

    def setup(self, metric: str, *, reference: str = "") -> Setup:
        """Return the protocol of a metric over these features."""
        ...


def extractor(name: str, *, device: str = "cpu", download: bool = False) -> Extractor:
    """Return a feature extractor by name.

    Args:
        name: "inception" (torch-fidelity's weights and resize: TensorFlow 1's bilinear without antialias, the one
            behind published FIDs); "inception-antialias" (the same weights, antialiased bilinear);
            "clip:<model>:<pretrained>" with open_clip's names; "dinov2" and "dino" (the class token of DINOv2
            ViT-L/14 and of DINO ViT-S/16); "hub:<repository>" for the class token of another vision transformer;
            "tinyworld-oracle" and "tinyworld-judge".
        device: Device of the model.
        download: Permission to download weights that are not in the local cache.

    Raises:
        UnknownNameError: There is none of this name.
        MissingExtraError: A package that it needs is not installed.
        MissingWeightsError: Its weights are not in the local cache and may not or cannot be downloaded.
    """
    kind, _, rest = name.partition(":")
    if name in ("inception", "inception-antialias"):
        return inception(antialias=name != "inception", device=device, download=download)
    if kind == "clip" and rest:
        from .clip import OpenClip

        clip = OpenClip.load(rest, device=device, download=download)
        return FunctionExtractor(clip.image_features, clip.name, library=clip.library, resize=clip.resize)
    if name in ("dinov2", "dino") or (kind == "hub" and rest):
        source = {"dinov2": DINOV2, "dino": DINO}.get(name, rest)
        return class_token(source, device=device, download=download)
    if name == "tinyworld-oracle":
        from erasure.tinyworld import load_oracle

        oracle = load_oracle(device)
        return FunctionExtractor(lambda images: oracle.read(images).features, oracle_name(oracle))
    if name == "tinyworld-judge":
        from erasure.tinyworld import load_clip

        return world_clip_features(load_clip(device))
    raise unknown_name("feature extractor", name, NAMES)


def world_clip_features(clip: WorldClip) -> "FunctionExtractor":
    """Return the tiny world's CLIP as an extractor."""
    return FunctionExtractor(
        clip.image_features, world_clip_name(clip), library=f"open_clip {version('open_clip_torch')}"
    )


@dataclass(frozen=True)
class FunctionExtractor:
    """Extractor of any function, such as `lambda images: oracle.read(images).features`.

    Attributes:
        read: Function from PIL RGB images to rows, an array or a tensor.
        backbone: Name of the weights.
        library: Library that computes the features, with its version.
        resize: Description of the resize.
    """

    read: Callable[[list[Image]], Features]
    backbone: str
    library: str = ""
    resize: str = ""

    def __call__(self, images: Images, /) -> Float[Tensor, "n dim"]:
        """Return one row an image.

        Raises:
            InputError: The function gives another number of rows.
        """
        converted = as_pil(images)
        rows = as_rows(self.read(converted))
        if len(rows) != len(converted):
            raise InputError(f"{self.backbone}: expected a row for each of {len(converted)} images, got {len(rows)}.")
        return rows

    def setup(self, metric: str, *, reference: str = "") -> Setup:
        return Setup(
            metric=metric, library=self.library, backbone=self.backbone, resize=self.resize, reference=reference
        )


def inception(*, antialias: bool, device: str = "cpu", download: bool = False) -> "Inception":
    """Return the 2,048 pooled features of torch-fidelity's Inception v3, through torchmetrics.

    Args:
        antialias: Antialias of the resize to 299 x 299; published FIDs have none.
        device: Device of the model.
        download: Permission to download the weights.

    Raises:
        MissingExtraError: torchmetrics or torch-fidelity is not installed.
        MissingWeightsError: The weights are not in the local cache and may not or cannot be downloaded.
    """
    if None in (find_spec("torchmetrics"), find_spec("torch_fidelity")):
        raise MissingExtraError(
            "inception: expected the packages torchmetrics and torch-fidelity, got not both."
            " Install erasure[eval] and torch-fidelity."
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    file = from_url(INCEPTION, "inception", download=download)
    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file), antialias=antialias)
    return Inception(net.to(device), antialias=antialias)


class Inception:
    """Inception v3's pooled features.

    Attributes:
        net: torchmetrics' network.
        antialias: Antialias of the resize.
    """

    def __init__(self, net: torch.nn.Module, *, antialias: bool) -> None:
        self.net, self.antialias = net, antialias

    @torch.no_grad()
    def __call__(self, images: Images, /) -> Float[Tensor, "n dim"]:
        device = next(self.net.parameters()).device
        return self.net(as_uint8(images).to(device)).float().cpu()

    def setup(self, metric: str, *, reference: str = "") -> Setup:
        return Setup(
            metric=metric,
            library=f"torchmetrics {version('torchmetrics')}",
            backbone="Inception v3, torch-fidelity 2015-12-05",
            resize=f"bilinear, {'antialias' if self.antialias else 'TensorFlow 1, no antialias'}, 299",
            reference=reference,
        )


def class_token(source: str, *, device: str = "cpu", download: bool = False) -> "ClassToken":
    """Return the last class token of a vision transformer of the Hub, with its own processor's size and normalisation.

    Raises:
        MissingWeightsError: It is not in the local cache and may not or cannot be downloaded.
        InputError: The checkpoint lacks weights of its model.
    """
    from transformers import AutoImageProcessor, AutoModel

    # A pooling layer on top of the class token is no part of it, and DINO's checkpoints have none.
    model = model_from_hub(AutoModel, source, source, download=download, unused=("pooler.",), device=device)
    processor = from_hub(AutoImageProcessor.from_pretrained, source, source, download=download)
    return ClassToken(model, processor, source)


@runtime_checkable
class HubImageProcessor(Protocol):
    """An image processor of transformers, whose base class declares no settings.

    Attributes:
        do_resize: Whether images are resized.
        size: Size after the resize, in pixels by edge.
        resample: Filter of the resize, a number of PIL.
    """

    do_resize: bool
    size: Mapping[str, int]
    resample: int

    def __call__(self, images: list[Image], *, return_tensors: str) -> BatchFeature:
        """Return the pixels of some images."""
        ...


class ClassToken:
    """The class token after the last normalisation.

    Attributes:
        model: A vision transformer of transformers.
        processor: Its image processor.
        source: Repository or folder of the weights.
    """

    def __init__(self, model: PreTrainedModel, processor: HubImageProcessor, source: str) -> None:
        self.model, self.processor, self.source = model.eval(), processor, source

    @torch.no_grad()
    def __call__(self, images: Images, /) -> Float[Tensor, "n dim"]:
        inputs = self.processor(images=as_pil(images), return_tensors="pt").to(self.model.device)
        return self.model(**inputs).last_hidden_state[:, 0].float().cpu()

    def setup(self, metric: str, *, reference: str = "") -> Setup:
        return Setup(
            metric=metric,
            library=f"transformers {version('transformers')}",
            backbone=f"{self.source}, class token",
            resize=processed(self.processor),
            reference=reference,
        )


def processed(processor: HubImageProcessor) -> str:
    """Return a description of the resize of an image processor of transformers."""
    cropped = (
        f", centre {dict(getattr(processor, 'crop_size', {}))}" if getattr(processor, "do_center_crop", False) else ""
    )
    resized = f"{dict(processor.size)}, resample {int(processor.resample)}" if processor.do_resize else "no resize"
    return f"{resized}{cropped}, {type(processor).__name__}"


def as_rows(features: Features) -> Float[Tensor, "n dim"]:
    """Return features as float32 rows on the CPU."""
    rows = features if isinstance(features, Tensor) else torch.from_numpy(features)
    return rows.detach().float().cpu()
