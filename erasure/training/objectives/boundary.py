"""NEDS, distribution shaping over a concept and its neighbours (arXiv:2603.12275)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...concept import Concept
from ...errors import InputError
from ...graph import ConceptGraph
from ...prompts import fill
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..draws.noised_images import ImagePrompt, NoisedDraw, NoisedImages, squared_errors
from ..finetune import Loss, below
from ..student import Student
from ..trajectories import encoded
from .base import Objective

_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class Boundary(Objective):
    """The denoiser's answers as a classifier of names, kept for the neighbours and without the target.

        q(k | x_t) = softmax_k(-tau |eps(x_t, k) - eps|^2)   over k = target, blank, neighbours
        L = KL(aim || q),   aim = q_0(. | x_t) for an image of a neighbour
                            aim = q_0(k) / (1 - q_0(target)), and 0 for the target, for an image of the target

    as a model that never knew the target would answer. x_t are noised images of the target and of its nearest
    preserved names, half each; k stands in the sentence of the image. |.|^2 is the mean over latents; tau is the
    smallest at which q_0 gives the right name `confidence` on average. An image costs the student a pass a name.

    Differs from the paper: the denoiser's own errors make the distribution over the graph's names.

    Attributes:
        neighbours: Number of nearest preserved names, > 0.
        confidence: Mean probability of the right name by the reference, in (0, 1); the largest possible if it is lower.
        images: Images of each name, > 0.
        image_steps: Sampling steps of an image, > 0.
        early: Share of the schedule that timesteps are drawn from, the noisiest part, in (0, 1].
    """

    name: ClassVar[str] = "boundary"
    source: ClassVar[str] = "arXiv:2603.12275"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "image_steps": 2, "confidence": 0.3}

    neighbours: Annotated[int, Field(ge=1)] = 4
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    images: Annotated[int, Field(ge=1)] = 16
    image_steps: Annotated[int, Field(ge=1)] = 25
    early: Annotated[float, Field(gt=0, le=1)] = 0.7

    def loss(self, task: TrainingTask) -> Loss:
        classifiers = [self._classifier(task, concept) for concept in task.concepts]

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            each = classifiers[below(len(classifiers), generator)]
            of_target = bool(below(2, generator))
            batch = each.drawn(task.batch_size, of_target, generator)
            with torch.no_grad(), task.reference():
                reference = (-each.tau * each.errors(batch)).softmax(1)
            logits = -each.tau * student(each.errors, batch)
            return divergence(struck_out(reference) if of_target else reference, logits).mean()

        return loss

    def _classifier(self, task: TrainingTask, concept: Concept) -> "NameClassifier":
        if not concept.preserve:
            raise InputError("boundary: expected a concept that preserves something, got none. Name it in preserve.")
        graph = ConceptGraph.of(task.backbone, [concept.target, *concept.preserve])
        near = [name for name, _ in graph.nearest([concept.target], self.neighbours)]
        concepts = [concept, *(Concept(target=name, kind=concept.kind) for name in near)]
        images = NoisedImages(
            task.context, concepts, images=self.images, image_steps=self.image_steps, early=self.early
        )
        classifier = NameClassifier(task=task, names=tuple(near), images=images)
        classifier.calibrate(self.confidence)
        return classifier


@dataclass(kw_only=True, eq=False)
class NameClassifier:
    """The denoiser as a classifier: the target first, then the blank prompt, then the neighbours.

    Attributes:
        task: Training.
        names: Neighbours of the target.
        images: Images of the target and of each neighbour, in that order.
        tau: Inverse temperature, 1 / squared prediction.
    """

    task: TrainingTask
    names: tuple[str, ...]
    images: NoisedImages
    tau: float = 1.0

    def __post_init__(self) -> None:
        distinct = dict.fromkeys(prompt for each in self.images.prompts for prompt in self._prompts(each))
        self._row_of = {prompt: row for row, prompt in enumerate(distinct)}
        self._encoded = encoded(self.task.backbone, list(distinct))

    def drawn(self, n: int, of_target: bool, generator: torch.Generator) -> NoisedDraw:
        """Return noised images of the target, or of one neighbour."""
        return self.images.draw(n, generator, 0 if of_target else 1 + below(len(self.names), generator))

    def errors(self, batch: NoisedDraw) -> Float[Tensor, "n names"]:
        """Return the error of the model in force at each image, under each name, with gradient."""
        prompts = [prompt for each in batch.prompts for prompt in self._prompts(each)]
        rows = [row for row in range(len(batch)) for _ in range(len(self.names) + 2)]
        read = self._encoded.select([self._row_of[prompt] for prompt in prompts])
        predicted = scheduled_prediction(self.task.backbone, batch.latents[rows], batch.timesteps[rows], read)
        return squared_errors(predicted, batch.truth[rows]).view(len(batch), -1)

    @torch.no_grad()
    def calibrate(self, confidence: float) -> None:
        """Set tau to the smallest at which the reference gives the right name so much probability on average."""
        generator = torch.Generator().manual_seed(self.task.context.seed)
        batch = self.images.noised(range(len(self.images.prompts)), generator)
        with self.task.reference():
            errors = torch.cat([self.errors(_row(batch, row)) for row in range(len(batch))])
        each = len(batch) // self.images.concepts
        right = torch.tensor([0 if row < each else 1 + row // each for row in range(len(batch))])
        spread = max(float((errors - errors.amin(1, keepdim=True)).mean()), 1e-12)
        self.tau = inverse_temperature(errors, right.to(errors.device), confidence, 1 / spread)

    def _prompts(self, prompt: ImagePrompt) -> list[str]:
        target = self.images.prompts[0].concept.target
        named = target if prompt.concept.target in self.names else prompt.word
        return [fill(prompt.template, named), prompt.blank, *(fill(prompt.template, name) for name in self.names)]


def _row(batch: NoisedDraw, row: int) -> NoisedDraw:
    return NoisedDraw(
        latents=batch.latents[[row]],
        timesteps=batch.timesteps[[row]],
        truth=batch.truth[[row]],
        rows=batch.rows[row : row + 1],
        prompts=batch.prompts[row : row + 1],
        named=batch.named.select([row]),
        anchors=batch.anchors.select([row]),
    )


def inverse_temperature(errors: Float[Tensor, "n names"], right: Tensor, confidence: float, start: float) -> float:
    """Return the smallest tau on a grid of halved octaves at which the right name has the confidence on average.

    The tau of the largest confidence if none reaches it.
    """
    grid: Sequence[float] = [start * 2 ** (i / 2 - 8) for i in range(_HALVINGS)]
    rows = torch.arange(len(errors), device=errors.device)
    means = [float((-tau * errors.double()).softmax(1)[rows, right].mean()) for tau in grid]
    reached = [tau for tau, mean in zip(grid, means, strict=True) if mean >= confidence]
    return reached[0] if reached else grid[means.index(max(means))]


def struck_out(probabilities: Float[Tensor, "n names"]) -> Float[Tensor, "n names"]:
    """Return distributions without their first name, renormalised."""
    rest = torch.cat([torch.zeros_like(probabilities[:, :1]), probabilities[:, 1:]], dim=1)
    return rest / rest.sum(1, keepdim=True).clamp(min=1e-12)


def divergence(aim: Float[Tensor, "n names"], logits: Float[Tensor, "n names"]) -> Float[Tensor, " n"]:
    """Return KL(aim || softmax(logits)) of each row."""
    return (torch.xlogy(aim, aim) - aim * logits.log_softmax(1)).sum(1)
