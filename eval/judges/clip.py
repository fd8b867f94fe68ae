"""CLIP as a zero-shot classifier, from the local cache or a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class ClipJudge:
    """CLIP as a zero-shot classifier between the concepts of a ledger and a picture of nothing in particular.

    Attributes:
        model: A transformers CLIPModel.
        processor: Its processor.
        names: The concepts to tell apart.
    """

    model: Any
    processor: Any
    names: tuple[str, ...]

    def read(self, images: Sequence[Image], /) -> "ClipReading":
        """Look at the pictures, 16 at a time."""
        import torch

        texts = [f"a picture of {name}" for name in self.names] + ["a picture"]
        shares, features = [], []
        with torch.inference_mode():
            for start in range(0, len(images), 16):
                batch = self.processor(
                    text=texts,
                    images=list(images[start : start + 16]),
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                )
                output = self.model(**batch.to(self.model.device))
                shares.append(output.logits_per_image.float().softmax(dim=1).cpu().numpy())
                features.append(output.image_embeds.float().cpu().numpy())
        return ClipReading(names=self.names, shares=np.concatenate(shares), features=np.concatenate(features))


@dataclass(frozen=True, kw_only=True)
class ClipReading:
    """What CLIP sees.

    Attributes:
        names: The concepts that it chose between.
        shares: Of each picture the probability of each text; the last is "a picture".
        features: Image embeddings.
    """

    names: tuple[str, ...]
    shares: Float[np.ndarray, "n texts"]
    features: Float[np.ndarray, "n dim"]

    def sees(self, name: str) -> Bool[np.ndarray, " n"]:
        """Say of each picture whether the concept is its best description."""
        return self.shares.argmax(axis=1) == self.names.index(name)


CLIP_WEIGHTS = ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32")


def find_clip() -> str | None:
    """Return a CLIP model whose weights are in the local Hub cache, the largest first; None without one."""
    return next((name for name in CLIP_WEIGHTS if cached(name)), None)


def cached(name: str) -> bool:
    """Whether a model's weights are in the local Hub cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "model.safetensors"), str)


def load_clip(source: str | Path, device: str) -> tuple[Any, Any]:
    """Load a CLIP model and its processor from the local cache or a folder; nothing is downloaded."""
    from transformers import CLIPModel, CLIPProcessor

    model: Any = CLIPModel.from_pretrained(source, local_files_only=True)
    return model.to(device).eval(), CLIPProcessor.from_pretrained(source, local_files_only=True)
