"""Preserved names that an erasure endangers: by text, by a dry run, and by their drift during the training."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.conditioning import Conditioning, concatenate
from ...concept import Concept, Kind
from ...edits.changes import exchanged
from ...errors import InputError
from ...graph import ConceptGraph
from ...prompts import fill, templates
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..finetune import Optimisation, finetune
from ..student import Student
from ..trajectories import Latents, TrajectoryPoints, trajectory_points
from .noised_images import NoisedImages, erasing_loss, kept_concepts

NeighbourView = Literal["text", "dry-run", "union"]
"""Ways to weigh neighbours: similarity of the names as text, drift in a dry run, or the mean of both."""

_DRY_STEPS, _DRY_LR = 6, 3e-4
_DRY_IMAGES, _DRY_IMAGE_STEPS = 4, 12
_DRY_ROLES = ("cross.k", "cross.v", "joint.text.k", "joint.text.v", "shared.k", "shared.v")
_EACH = 4  # trajectories of a name, with as many latents each


class NeighbourPool:
    """Latents on the reference's trajectories of each preserved name.

    Args:
        task: Training.
        names: Names to sample for; None takes all that the concepts preserve.

    Raises:
        InputError: No concept preserves anything.
    """

    def __init__(self, task: TrainingTask, names: Sequence[str] | None = None) -> None:
        self.task = task
        kinds: dict[str, Kind] = {name: concept.kind for concept in task.concepts for name in concept.preserve}
        if not kinds:
            raise InputError("neighbours: expected concepts that preserve something, got none. Name it in preserve.")
        self.names = tuple(kinds if names is None else names)
        generator = torch.Generator().manual_seed(task.context.seed)
        parts = []
        with task.reference():
            for name in self.names:
                sentences = templates(kinds[name])
                prompts = [fill(sentences[i % len(sentences)], name) for i in range(_EACH)]
                parts.append(trajectory_points(task.backbone, prompts, generator))
        self._each = len(parts[0])
        self.points = TrajectoryPoints(
            latents=torch.cat([part.latents for part in parts]),
            timesteps=torch.cat([part.timesteps for part in parts]),
            conditioning=concatenate([part.conditioning for part in parts]),
        )

    def rows(self, name: str) -> list[int]:
        """Return the rows of a name's latents."""
        first = self.names.index(name) * self._each
        return list(range(first, first + self._each))

    @torch.no_grad()
    def reference(self, rows: Sequence[int], prompts: Conditioning | None = None) -> Latents:
        """Return the reference's prediction at some rows, under their own prompts or others."""
        latents, timesteps, read = self.points.select(rows)
        with self.task.reference():
            return scheduled_prediction(self.task.backbone, latents, timesteps, read if prompts is None else prompts)

    def read_by(self, student: Student, rows: Sequence[int]) -> Latents:
        """Return the student's prediction at some rows, with gradient."""
        return student(scheduled_prediction, self.task.backbone, *self.points.select(rows))

    @torch.no_grad()
    def drifts(self, student: Student) -> Float[Tensor, " names"]:
        """Return the student's |eps - eps_0|^2 at a few latents of each name, each of another trajectory and step."""
        return self.drifts_by(lambda rows: self.read_by(student, rows), every=_EACH + 1)

    @torch.no_grad()
    def drifts_by(self, read: Callable[[Sequence[int]], Latents], every: int = 1) -> Float[Tensor, " names"]:
        """Return |eps - eps_0|^2 at each name's latents, for a function that predicts at rows.

        Args:
            read: Returns the predictions at some rows.
            every: Distance of two rows of a name that are read, > 0.
        """
        chosen = [self.rows(name)[::every] for name in self.names]
        return torch.stack([(read(rows) - self.reference(rows)).square().mean() for rows in chosen]).cpu()


def neighbour_weights(pool: NeighbourPool, view: NeighbourView, count: int) -> Float[Tensor, " names"]:
    """Return the weight of each name of the pool, of sum 1: those of the `count` nearest in proportion, others 0."""
    parts = {"text": (text_nearness,), "dry-run": (dry_run_nearness,), "union": (text_nearness, dry_run_nearness)}
    weights = torch.stack([_shares(nearness(pool), count) for nearness in parts[view]])
    return weights.mean(0)


def nearest_by_text(task: TrainingTask, count: int | None = None) -> dict[str, float]:
    """Return the preserved names that are nearest to a target as text, with their similarity, the nearest first.

    The mean over all names is taken off the similarity.
    """
    targets = [concept.target for concept in task.concepts]
    kept = [name for concept in task.concepts for name in concept.preserve]
    graph = ConceptGraph.of(task.backbone, [*targets, *kept], views=("likeness",))
    return dict(graph.nearest(targets, count, view="likeness"))


def nearest_concepts(task: TrainingTask, count: int) -> list[Concept]:
    """Return the preserved names that are nearest to a target as text, as concepts without an anchor."""
    near = nearest_by_text(task, count)
    return [concept for concept in kept_concepts(task.concepts) if concept.target in near]


def text_nearness(pool: NeighbourPool) -> Float[Tensor, " names"]:
    """Return the largest similarity of each name to a target as text."""
    near = nearest_by_text(pool.task)
    return torch.tensor([near.get(name, 0.0) for name in pool.names])


def dry_run_nearness(pool: NeighbourPool) -> Float[Tensor, " names"]:
    """Return the drift of each name after six updates of the plain erasing loss on keys and values; nothing is kept.

    A rank, not a rate: drift does not say how much of an image is lost.
    """
    task = pool.task
    names = frozenset(name for name in task.backbone.sites(_DRY_ROLES) if name.endswith(".weight"))
    targets = NoisedImages(task.context, task.concepts, images=_DRY_IMAGES, image_steps=_DRY_IMAGE_STEPS)
    with task.reference():
        changes = finetune(
            task.backbone,
            names.__contains__,
            erasing_loss(task, targets),
            Optimisation(steps=_DRY_STEPS, lr=_DRY_LR, optimizer="adam"),
            seed=task.context.seed,
        )
        parameters = task.backbone.parameters(names.__contains__)
        moved = {name: p.detach() + changes[name].of(p.detach()).to(p.dtype) for name, p in parameters.items()}

    def read(rows: Sequence[int]) -> Latents:
        with exchanged(parameters, moved):
            return scheduled_prediction(task.backbone, *pool.points.select(rows))

    return pool.drifts_by(read)


class WorstFirst:
    """Sampling weights that grow where the training does most harm (distributionally robust sampling).

    Every `every` updates the weight of each name is multiplied by exp(drift / mean drift) and all are brought back to
    the sum of 1.

    Args:
        pool: Preserved names.
        weights: Weights at the start, of sum 1.
        every: Updates between two looks, > 0.
    """

    def __init__(self, pool: NeighbourPool, weights: Float[Tensor, " names"], every: int = 25) -> None:
        self._pool, self._every = pool, every
        self.weights = weights

    def update(self, student: Student, step: int) -> None:
        """Look at the drifts if it is time to."""
        if step and step % self._every == 0:
            self.weights = worst_first(self.weights, self._pool.drifts(student))


def worst_first(weights: Float[Tensor, " names"], drifts: Float[Tensor, " names"]) -> Float[Tensor, " names"]:
    """Return weights after one look: w exp(drift / mean drift), of sum 1; as they are where nothing drifted."""
    mean = drifts.mean()
    raised = weights * torch.exp(drifts / mean) if mean > 0 else weights
    return raised / raised.sum()


def endangered(task: TrainingTask) -> list[tuple[str, float]]:
    """Return the preserved names by their drift in a dry run, the most endangered first."""
    pool = NeighbourPool(task)
    drifts = dry_run_nearness(pool)
    order = drifts.argsort(descending=True, stable=True).tolist()
    return [(pool.names[i], float(drifts[i])) for i in order]


def kept_beside(concept: Concept) -> list[tuple[str, str, str]]:
    """Return prompts that name a preserved concept beside the target or its anchor: prompt, preserved, the other."""
    others = [name for name in (concept.target, concept.anchor) if name]
    sentences = [template for template in templates(concept.kind) if template != "{}"]
    return [
        (fill(sentences[(i + j) % len(sentences)], f"{kept} and {other}"), kept, other)
        for i, kept in enumerate(concept.preserve)
        for j, other in enumerate(others)
        if kept != other
    ]


def _shares(nearness: Float[Tensor, " names"], count: int) -> Float[Tensor, " names"]:
    """Return the positive values of the largest `count` as shares of their sum; equal shares where none is positive."""
    positive = nearness.clamp(min=0)
    kept = torch.zeros_like(positive)
    largest = positive.topk(min(count, len(positive))).indices
    kept[largest] = positive[largest]
    if not kept.any():
        kept[largest] = 1.0
    return kept / kept.sum()
