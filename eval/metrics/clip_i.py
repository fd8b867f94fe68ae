"""CLIP-I: similarity with reference images in CLIP's space (Ruiz et al., DreamBooth, arXiv:2208.12242)."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from erasure.registry import Exactness

from ..features.image_features import Extractor, extractor
from .base import Feed
from .similarity import ReferenceSimilarity


@dataclass(kw_only=True)
class ClipI(ReferenceSimilarity):
    """Streaming CLIP-I: mean cosine of every image with every reference.

    Attributes:
        extractor: Feature extractor; default: DreamBooth's CLIP, ViT-B/32.
    """

    name: ClassVar[str] = "clip_i"
    source: ClassVar[str] = "arXiv:2208.12242"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "reference"

    extractor: Extractor = field(default_factory=partial(extractor, "clip:ViT-B-32:openai"))
