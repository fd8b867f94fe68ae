"""DINO-I: likeness to reference images in DINO's space (Ruiz et al., DreamBooth, arXiv:2208.12242).

Unlike CLIP's, its features tell individuals of one kind apart.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from ..features.image_features import Extractor, extractor
from .similarity import ReferenceSimilarity


@dataclass(kw_only=True)
class DinoI(ReferenceSimilarity):
    """Streaming DINO-I: mean cosine of every image with every reference.

    Attributes:
        extractor: The class token of DINO ViT-S/16 by default.
    """

    name: ClassVar[str] = "dino_i"

    extractor: Extractor = field(default_factory=partial(extractor, "dino"))
