"""CLIP-I: likeness to reference images in CLIP's space (Ruiz et al., DreamBooth, arXiv:2208.12242)."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from ..features.image_features import Extractor, extractor
from .similarity import ReferenceSimilarity


@dataclass(kw_only=True)
class ClipI(ReferenceSimilarity):
    """Streaming CLIP-I: mean cosine of every image with every reference.

    Attributes:
        extractor: DreamBooth's CLIP, ViT-B/32, by default.
    """

    name: ClassVar[str] = "clip_i"

    extractor: Extractor = field(default_factory=partial(extractor, "clip:ViT-B-32:openai"))
