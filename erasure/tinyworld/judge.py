"""The second judge: a small open_clip model, trained apart from the generator and the oracle with another seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from ..errors import MissingExtraError
from .models import POSITIONS, VOCABULARY_SIZE
from .oracle import Pictures, as_pixels

CONFIG: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 96, "layers": 4, "head_width": 24},
    "text_cfg": {"context_length": POSITIONS, "vocab_size": VOCABULARY_SIZE, "width": 64, "heads": 4, "layers": 3},
}


def build(config: dict[str, Any] = CONFIG) -> torch.nn.Module:
    """Build the untrained open_clip model.

    Raises:
        MissingExtraError: open_clip is not installed.
    """
    try:
        from open_clip import CLIP
    except ImportError as error:
        raise MissingExtraError(
            "judge: expected the package open_clip_torch, got none. Install erasure[eval]."
        ) from error
    return CLIP(**config)


class WorldClip:
    """The trained open_clip model: image and text features in one space.

    Attributes:
        model: The open_clip model.
        tokenizer: The tiny world's tokenizer; its ids are all that is shared with the generator.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: CLIPTokenizer, device: str | torch.device = "cpu") -> None:
        self.model, self.tokenizer, self.device = model.eval().to(device), tokenizer, torch.device(device)

    @classmethod
    def load(cls, folder: Path, tokenizer: CLIPTokenizer, device: str | torch.device = "cpu") -> "WorldClip":
        """Load the model saved in a folder."""
        model = build(json.loads((folder / "config.json").read_text()))
        model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()}, strict=False)
        return cls(model, tokenizer, device)

    def save(self, folder: Path) -> None:
        """Save as float16 safetensors with the open_clip configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.half().contiguous().cpu() for k, v in self.model.state_dict().items() if v.is_floating_point()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")

    @property
    def logit_scale(self) -> float:
        """Factor of the cosines that training ended with."""
        return float(self.model.logit_scale.detach().exp())  # type: ignore[operator]

    def ids(self, texts: Sequence[str]) -> Int[Tensor, "n 32"]:
        """Return the token ids of texts, padded and cut with the end of text kept."""
        batch = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=POSITIONS, return_tensors="pt"
        )
        return batch.input_ids

    @torch.no_grad()
    def image_features(self, pictures: Pictures, batch_size: int = 64) -> Float[Tensor, "n dim"]:
        """Return unit-length features of pictures."""
        parts = [
            self.model.encode_image(as_pixels(pictures[i : i + batch_size]).to(self.device), normalize=True)  # type: ignore[operator]
            for i in range(0, len(pictures), batch_size)
        ]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Return unit-length features of texts."""
        return self.model.encode_text(self.ids(texts).to(self.device), normalize=True).cpu()  # type: ignore[operator]
