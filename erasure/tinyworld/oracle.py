"""The oracle: a classifier of the objects, style and scene of a tiny-world picture, or of none of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import checks_arguments
from ..errors import unknown_name
from ..judge import ReadOnce
from .data import THINGS
from .vocabulary import SCENES, STYLES, canonical

Pictures = Sequence[Image.Image] | NDArray[np.uint8]
STAGES: tuple[tuple[int, int], ...] = ((32, 2), (64, 2), (128, 1))
"""Channels and residual blocks of each resolution: 32 x 32, 16 x 16, 8 x 8."""


def as_pixels(pictures: Pictures) -> Float[Tensor, "n 3 64 64"]:
    """Return pictures (PIL RGB or uint8 (n, 64, 64, 3)) as float in [-1, 1]."""
    array = pictures if isinstance(pictures, np.ndarray) else np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, same shape as its input."""
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class OracleNet(nn.Module):
    """The oracle's network: pixels to logits of things, style and scene, with the features of each resolution."""

    def __init__(self) -> None:
        super().__init__()
        stages, before = [], 3
        for channels, blocks in STAGES:
            down = [
                nn.Conv2d(before, channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            stages.append(nn.Sequential(*down, *(Residual(channels) for _ in range(blocks))))
            before = channels
        self.stages = nn.ModuleList(stages)
        self.things = nn.Linear(2 * before, len(THINGS))
        self.style = nn.Linear(2 * before, len(STYLES))
        self.scene = nn.Linear(2 * before, len(SCENES))
        for name in ("things", "style", "scene"):  # calibration, fitted on drawings the training did not see
            self.register_buffer(f"{name}_temperature", torch.ones(()))

    def maps(self, x: Float[Tensor, "n 3 64 64"]) -> list[Tensor]:
        """Return the feature maps at 32 x 32, 16 x 16 and 8 x 8."""
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out

    def forward(self, x: Float[Tensor, "n 3 64 64"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return calibrated logits of things (n, 27), styles (n, 6), scenes (n, 7), and pooled features (n, 256)."""
        return self.heads(self.maps(x)[-1])

    def heads(self, last: Float[Tensor, "n 128 8 8"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the outputs of `forward` from the last feature maps."""
        pooled = torch.cat([last.mean((2, 3)), last.amax((2, 3))], 1)
        heads = (
            getattr(self, name)(pooled) / getattr(self, f"{name}_temperature") for name in ("things", "style", "scene")
        )
        return (*heads, pooled)  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The oracle's outputs for n pictures.

    Attributes:
        things: (n, 27) probability that each of `data.THINGS` is there.
        style: (n, 6) probabilities over `vocabulary.STYLES`.
        scene: (n, 7) probabilities over `vocabulary.SCENES`.
        features: (n, 256) pooled features.
    """

    things: NDArray[np.float32]
    style: NDArray[np.float32]
    scene: NDArray[np.float32]
    features: NDArray[np.float32]

    def probability(self, name: str) -> NDArray[np.float32]:
        """Return the probability (n,) of an object, individual, style or scene.

        Raises:
            UnknownNameError: The oracle was never taught the name.
        """
        for known, table in ((THINGS, self.things), (STYLES, self.style), (SCENES, self.scene)):
            if name in known:
                return table[:, known.index(name)]
        raise unknown_name("oracle name", name, (*THINGS, *STYLES, *SCENES))

    def sees(self, name: str) -> NDArray[np.bool_]:
        """Return True (n,) for each picture that shows the name: above one half; for style and scene, the likeliest."""
        for known, table in ((STYLES, self.style), (SCENES, self.scene)):
            if name in known:
                return table.argmax(1) == known.index(name)
        return self.probability(name) > 0.5

    def empty(self) -> NDArray[np.bool_]:
        """Return True (n,) for each picture without any thing."""
        return self.things.max(1) <= 0.5


@checks_arguments
class Oracle:
    """The trained oracle: it reads pictures whole, and as a judge it is asked for one concept at a time."""

    name = "the tiny world's oracle"

    def __init__(self, net: OracleNet, device: str | torch.device = "cpu") -> None:
        self.net, self.device = net.eval().to(device), torch.device(device)
        self._reading = ReadOnce(self.read)

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> "Oracle":
        """Load the oracle saved in a folder."""
        net = OracleNet()
        net.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()}
        )
        return cls(net, device)

    def save(self, folder: Path) -> None:
        """Save as float16 safetensors with a readable list of its outputs."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.net.state_dict().items()}
        save_file({k: v.contiguous().cpu() for k, v in state.items()}, folder / "model.safetensors")
        outputs = {"things": THINGS, "style": STYLES, "scene": SCENES, "size": 64, "threshold": 0.5}
        (folder / "config.json").write_text(json.dumps(outputs, indent=2) + "\n")

    def knows(self, concept: str) -> bool:
        """Return True if the oracle was taught the concept; synonyms count."""
        return _taught(concept) in (*THINGS, *STYLES, *SCENES)

    def probabilities(self, images: Sequence[Image.Image], concept: str) -> Float[Tensor, " n"]:
        """Return the probability that each picture shows the concept.

        Raises:
            UnknownNameError: The oracle was never taught the concept.
        """
        return torch.from_numpy(self._reading(images).probability(_taught(concept)))

    def shows(self, images: Sequence[Image.Image], concept: str) -> list[bool]:
        """Return a decision for each picture, as `Reading.sees`.

        Raises:
            UnknownNameError: The oracle was never taught the concept.
        """
        return self._reading(images).sees(_taught(concept)).tolist()

    def features(self, images: Sequence[Image.Image]) -> Float[Tensor, "n dim"]:
        """Return the pooled features."""
        return torch.from_numpy(self._reading(images).features)

    @torch.no_grad()
    def read(self, pictures: Pictures, batch_size: int = 64) -> Reading:
        """Read pictures: PIL images or uint8 (n, 64, 64, 3)."""
        parts = [
            self.read_with_maps(pictures[start : start + batch_size])[0]
            for start in range(0, len(pictures), batch_size)
        ]
        sizes = {"things": len(THINGS), "style": len(STYLES), "scene": len(SCENES), "features": 2 * STAGES[-1][0]}
        return Reading(
            **{
                name: np.concatenate([getattr(part, name) for part in parts] or [np.zeros((0, size), np.float32)])
                for name, size in sizes.items()
            }
        )

    @torch.no_grad()
    def read_with_maps(self, pictures: Pictures) -> tuple[Reading, list[Tensor]]:
        """Read pictures at once, and return the feature maps of each resolution with it, on the oracle's device."""
        maps = self.net.maps(as_pixels(pictures).to(self.device))
        things, style, scene, pooled = self.net.heads(maps[-1])
        values = (value.cpu().numpy() for value in (things.sigmoid(), style.softmax(1), scene.softmax(1), pooled))
        return Reading(**dict(zip(("things", "style", "scene", "features"), values, strict=True))), maps


def _taught(concept: str) -> str:
    """Return the world's name for a concept; the oracle knows Rusty and "photo", which are no concepts to erase."""
    return canonical(concept) or concept
