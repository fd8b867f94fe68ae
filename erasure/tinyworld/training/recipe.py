"""Settings of one training of the tiny world."""

from dataclasses import dataclass
from pathlib import Path

from ..data import Drawings, drawings
from ..vocabulary import INDIVIDUALS
from ..world import Mix

SHARES: dict[str, float] = {
    "clip": 0.05,
    "vae": 0.08,
    "oracle": 0.07,
    "unet": 0.74,
    "transformer": 0.74,
    "judge": 0.06,
}
"""Share of the minutes of each trained stage; a model has one of the two denoisers."""

DENOISERS: tuple[str, ...] = ("unet", "transformer")
STAGES: tuple[str, ...] = ("tokenizer", "clip", "vae", "oracle", *DENOISERS, "judge", "assemble")
UNET_STAGES: tuple[str, ...] = tuple(stage for stage in STAGES if stage != "transformer")
PICTURES, ORACLE_PICTURES = 48_000, 24_000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one training.

    Attributes:
        out: Folder of the state, the samples and the finished model.
        minutes: Length of the whole training, shared among the stages; None: what is trained has a length in steps.
        device: Device of the training: "cpu", "cuda" or "mps".
        without: Concepts that no training picture shows.
        seed: Seed of pictures, weights and order.
        data: Folder of drawn pictures; None: `out`/data.
        pictures: Number of training pictures.
        lr: Highest learning rate of the denoiser; those of the other stages are in proportion.
        batch_size: Pictures per step of the denoiser.
        stages: Stages to train; a stage that these need and that was trained before is loaded.
        start_from: Folder of a finished model, whose weights initialise stages without a state.
        anew: Stages that start from random weights in spite of `start_from`.
        precision: "float32" or "bfloat16".
        steps: Length of the denoiser's training in steps; None: its share of the minutes.
        grounding: Whether the UNet's attention maps are trained towards the objects' boxes.
    """

    out: Path
    minutes: float | None = None
    device: str = "cpu"
    without: tuple[str, ...] = ()
    seed: int = 0
    data: Path | None = None
    pictures: int = PICTURES
    lr: float = 1e-3
    batch_size: int = 32
    stages: tuple[str, ...] = UNET_STAGES
    start_from: Path | None = None
    anew: tuple[str, ...] = ()
    precision: str = "float32"
    steps: int | None = None
    grounding: bool = True

    @property
    def drawings_folder(self) -> Path:
        return self.data or self.out / "data"

    @property
    def denoiser(self) -> str:
        """The stage that trains the model's denoiser."""
        return "transformer" if "transformer" in self.stages else "unet"

    def minutes_of(self, stage: str) -> float:
        """Return the share of the minutes of a trained stage."""
        return (self.minutes or 0.0) * SHARES[stage]


def training_set(recipe: Recipe) -> Drawings:
    """Return the drawings of the text tower, the autoencoder and the denoiser."""
    return drawings(recipe.pictures, recipe.seed, Mix(without=recipe.without), folder=recipe.drawings_folder)


def full_set(n: int, recipe: Recipe, offset: int) -> Drawings:
    """Return n drawings of every concept and individual, whatever the recipe leaves out.

    Args:
        n: Number of drawings.
        recipe: Recipe of the training.
        offset: Offset of the drawings' seed from the recipe's.
    """
    mix = Mix(individuals=tuple(INDIVIDUALS), hold_out=False)
    return drawings(n, recipe.seed + offset, mix, folder=recipe.drawings_folder)
