"""Preserved names that an erasure endangers: by text, by a dry run, and by their drift during the training."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.conditioning import Conditioning
from ...concept import Concept
from ...edits.changes import exchanged
from ...errors import InputError
from ...graph import ConceptGraph
from ...prompts import fill, templates
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..finetune import Optimisation, finetune
from ..student import Student
from ..trajectories import Latents, TrajectoryPoints, trajectory_points
from .noised_images import NoisedImages, erasing_loss

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

    Raises:
        InputError: No concept preserves anything.
    """

    def __init__(self, task: TrainingTask) -> None:
        self.task = task
        kinds = {name: concept.kind for concept in task.concepts for name in concept.preserve}
        if not kinds:
            raise InputError("neighbours: expected concepts that preserve something, got none. Name it in preserve.")
        self.names = tuple(kinds)
        sentences = {name: templates(kind) for name, kind in kinds.items()}
        prompts = [fill(sentences[name][i % len(sentences[name])], name) for name in kinds for i in range(_EACH)]
        generator = torch.Generator().manual_seed(task.context.seed)
        with task.reference():
            self.points: TrajectoryPoints = trajectory_points(task.backbone, prompts, generator)
        total = len(prompts)
        self._rows = {
            name: [row for row in range(len(self.points)) if row % total // _EACH == i]
            for i, name in enumerate(self.names)
        }

    def rows(self, name: str) -> list[int]:
        """Return the rows of a name's latents."""
        return self._rows[name]

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
    def drifts(self, student: Student | None = None, each: int = 4) -> Float[Tensor, " names"]:
        """Return |eps - eps_0|^2 of each name at some of its latents, by the student or the weights in force."""
        drifts = []
        for name in self.names:
            rows = self.rows(name)[:: max(1, len(self.rows(name)) // each)][:each]
            if student is None:
                predicted = scheduled_prediction(self.task.backbone, *self.points.select(rows))
            else:
                predicted = self.read_by(student, rows)
            drifts.append((predicted - self.reference(rows)).square().mean())
        return torch.stack(drifts).cpu()


def neighbour_weights(pool: NeighbourPool, view: NeighbourView, count: int) -> Float[Tensor, " names"]:
    """Return the weight of each name of the pool, of sum 1: those of the `count` nearest in proportion, others 0."""
    parts = {"text": (text_nearness,), "dry-run": (dry_run_nearness,), "union": (text_nearness, dry_run_nearness)}
    weights = torch.stack([_shares(nearness(pool), count) for nearness in parts[view]])
    return weights.mean(0)


def text_nearness(pool: NeighbourPool) -> Float[Tensor, " names"]:
    """Return the largest similarity of each name to a target as text, the mean over all names taken off."""
    targets = [concept.target for concept in pool.task.concepts]
    graph = ConceptGraph.of(pool.task.backbone, [*targets, *pool.names], views=("likeness",))
    near: Mapping[str, float] = dict(graph.nearest(targets, view="likeness"))
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
    with exchanged(parameters, moved):
        return pool.drifts()


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
