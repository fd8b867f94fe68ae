"""DINO-I: similarity with reference images in DINO's space (Ruiz et al., DreamBooth, arXiv:2208.12242).

Unlike CLIP's features, DINO's distinguish individuals of one class.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from erasure.registry import Exactness

from ..features.image_features import Extractor, extractor
from .base import Feed
from .similarity import ReferenceSimilarity


@dataclass(kw_only=True)
class DinoI(ReferenceSimilarity):
    """Streaming DINO-I: mean cosine of every image with every reference.

    Attributes:
        extractor: Feature extractor; default: the class token of DINO ViT-S/16.
    """

    name: ClassVar[str] = "dino_i"
    source: ClassVar[str] = "arXiv:2208.12242"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "reference"

    extractor: Extractor = field(default_factory=partial(extractor, "dino"))
