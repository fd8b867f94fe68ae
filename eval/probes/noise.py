"""Noise on the weights: how flat is the removal? (ours; after the robustness tests of StableUN)."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from erasure.edits.changes import exchanged
from erasure.prompts import fill, templates
from erasure.registry import Exactness
from erasure.training.flatness import leaf_gradients, scaled_to
from erasure.training.student import Student

from .base import Access, Aim, Models, Outcome, Probe, Subject, Suite
from .examples import example_latents
from .learning import denoising_loss

Radius = Annotated[float, Field(gt=0)]
Direction = Literal["random", "gradient"]
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Noise(Probe):
    """Every weight of the denoiser with two dimensions and more is moved, by a length relative to it.

    Kept concepts are sampled at each dose, as a destroyed model draws nothing. Gaussian noise is the same for every
    model. `gradient` is one step down the denoising error of images of the concept under its name, of all weights
    together: a removal in a sharp minimum, where the concept is near in that one direction, shows it there and not
    along random ones.

    Attributes:
        doses: Norms of the move, relative to that of each weight (random) or of all weights (gradient), > 0.
        directions: Directions of the move.
        examples: Images of the concept that the gradient is taken on, > 0.
        batches: Batches of 16 noised images for it, > 0.
    """

    name: ClassVar[str] = "noise"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "weights"
    dose_unit: ClassVar[str] = "of the weights' norm"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"full": {}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1e-2,), "examples": 2, "batches": 1})

    doses: Annotated[tuple[Radius, ...], Field(min_length=1)] = (1e-2, 3e-2, 1e-1)
    directions: Annotated[tuple[Direction, ...], Field(min_length=1)] = ("random", "gradient")
    examples: Annotated[int, Field(ge=1)] = 32
    batches: Annotated[int, Field(ge=1)] = 8

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        if "gradient" not in self.directions:
            return {}
        return {"clean": example_latents(models, aim, aim.concept.target, self.examples, seed=aim.seed + 5)}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        parameters = subject.denoiser_weights
        for direction in self.directions:
            if direction == "random":
                moves = {name: _draw(name, p, subject.aim.seed) for name, p in parameters.items()}
            else:
                moves = self._downhill(subject, parameters)
            for i, dose in enumerate(self.doses):
                subject.report(i, len(self.doses), f"{direction}, {dose:g}")
                moved = {name: p.data + dose * moves[name] for name, p in parameters.items()}
                with exchanged(parameters, moved):
                    images, kept = subject.sampled(), subject.sampled_kept()
                part = "" if direction == "random" else direction
                yield Outcome(dose=dose, part=part, images=images, kept=kept)

    def _downhill(self, subject: Subject, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the direction in which the denoising error of the concept's images falls, as long as all weights."""
        subject.report(0, self.batches, "gradient")
        backbone, aim = subject.backbone, subject.aim
        prompt = fill(templates(aim.concept.kind)[2], aim.concept.target)
        loss = denoising_loss(backbone, subject.material["clean"], [prompt], _BATCH)
        generator = torch.Generator().manual_seed(aim.seed + 6)
        student = Student(backbone, set(parameters).__contains__, None, generator)
        total = {leaf: torch.zeros_like(each) for leaf, each in student.leaves.items()}
        for i in range(self.batches):
            for leaf, gradient in leaf_gradients(student, loss, i, generator).items():
                total[leaf] -= gradient
        length = float(torch.stack([p.data.float().norm() for p in parameters.values()]).norm())
        return {leaf.name: each.to(parameters[leaf.name]) for leaf, each in scaled_to(total, length).items()}


def _draw(name: str, parameter: nn.Parameter, seed: int) -> Tensor:
    """Return Gaussian noise as long as a weight, the same for every model."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    draw = torch.randn(parameter.shape, generator=generator).to(parameter.data)
    return parameter.data.norm() / draw.norm() * draw
