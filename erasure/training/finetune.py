"""The one optimisation loop of every trained eraser.

The pipeline keeps its own weights throughout: the weights under training, the student, live beside it in float32 and
stand in for the pipeline's only while `Student.__call__` runs. So original and student are one model in memory plus
the trained weights, and there is nothing to restore when something fails.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..edits import DenseChange, LowRankChange
from ..errors import InputError, SolveError
from ..progress import OnProgress, Progress
from .student import Leaf, Student, at_rest

Loss = Callable[[Student, int, torch.Generator], Float[Tensor, ""]]
"""Value that a step minimises, from the student, the step from 0, and the generator of the step's draws."""

Gradient = Mapping[Leaf, Tensor]
"""One tensor for each trained leaf."""

_Drawn = tuple[tuple[float, Loss], torch.Generator]
"""A loss with its weight and the generator of its draws."""

Start = Callable[[Tensor, torch.Generator], Tensor]
"""Offset of a weight at which its training starts, float32, from the weight and a generator."""

StepMap = Callable[[Gradient], Gradient]
"""Correction of the step that the optimiser made, linear; exact for every optimiser, weight decay included."""


class GradientMap(ABC):
    """Correction of the gradients before the optimiser's moments; positively homogeneous: f(s g) = s f(g), s > 0."""

    @abstractmethod
    def __call__(self, erase: Gradient, keep: Gradient, step: int) -> tuple[Gradient, Gradient]:
        """Return the gradients of the main loss and of the further terms, corrected."""

    def note(self) -> str:
        """Return a short report of the corrections so far; "" for none."""
        return ""


@dataclass(frozen=True, kw_only=True)
class WeightedLoss:
    """A further term of the loss.

    Attributes:
        loss: Loss with draws of its own: adding a term leaves the draws of the others as they were.
        weight: Factor against the main loss, >= 0; at 0 the term is not computed.
        erases: Whether maps see its gradient as a part of the main loss's; such terms stand before the others.
    """

    loss: Loss
    weight: float
    erases: bool = False


class Neighbourhood(ABC):
    """Weights around those under training, at which a loss is taken as well."""

    keep_too: bool = False
    """Whether the terms are taken there too, or only the main loss."""

    @abstractmethod
    def offsets(self, student: Student, step: int, generator: torch.Generator) -> list[Gradient]:
        """Return the offset of each neighbour from the leaves; one of all zeros may be left out."""


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Settings of the loop.

    Attributes:
        steps: Number of updates, >= 0.
        lr: Learning rate, > 0.
        warm_up: Updates in which the learning rate rises to `lr`, >= 0.
        restarts: Times that it then falls to 0 along a cosine, >= 0; 0 keeps it constant.
        rank: Rank of the patch `up @ down` that is trained in each matrix or kernel instead of the weights, > 0;
            vectors are left out. None trains the weights.
        optimizer: "adamw" or "adam", with PyTorch's defaults.
        weight_decay: Weight decay of the optimiser, towards zero weights (towards a zero patch with `rank`), >= 0.
        pull: Decoupled decay towards the weights at the start (arXiv:1802.01483, arXiv:1711.05101), >= 0: each update
            moves them back by the share lr x pull of their way so far. It undoes what only the noise of the draws did.
        clip_norm: Largest norm of the gradient of all trained weights, > 0; a longer one is scaled down to it.
        clear_gradients: Whether each update follows its own step's gradient; else the sum of all so far, as in training
            scripts that never clear it.
        last_rows: Number of last rows to train, by parameter name, in full whatever the rank, and no other rows: the
            words that were added to a table. The change returned for one has just those rows.
        last_rows_lr: Learning rate of the last rows, > 0; None is `lr`.
        every: Updates of which one has the main loss, > 0; the others follow the terms alone.

    Raises:
        InputError: A setting is out of range.
    """

    steps: int
    lr: float
    warm_up: int = 0
    restarts: int = 0
    rank: int | None = None
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = 0.0
    pull: float = 0.0
    clip_norm: float | None = None
    clear_gradients: bool = True
    last_rows: Mapping[str, int] | None = None
    last_rows_lr: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"finetune.steps: expected at least 0, got {self.steps!r}. Give how many updates to make.")
        if self.every < 1:
            raise InputError(f"finetune.every: expected at least 1, got {self.every!r}. 1 erases at every update.")
        if not self.lr > 0:
            raise InputError(f"finetune.lr: expected a number > 0, got {self.lr!r}. The papers use about 1e-5.")
        if self.rank is not None and self.rank < 1:
            raise InputError(
                f"finetune.rank: expected at least 1, got {self.rank!r}. Leave it out to train full weights."
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(
                f"finetune.clip_norm: expected a number > 0, got {self.clip_norm!r}. Leave it out not to clip."
            )

    def share_of_lr(self, step: int) -> float:
        """Return the learning rate of a step, from 0, relative to `lr`."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        if not self.restarts:
            return 1.0
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return 0.5 * (1 + math.cos(math.pi * (self.restarts * progress % 1.0)))


def finetune(
    backbone: Backbone,
    which: Callable[[str], bool],
    loss: Loss,
    optimisation: Optimisation,
    *,
    terms: Sequence[WeightedLoss] = (),
    maps: Sequence[GradientMap] = (),
    limits: Sequence[StepMap] = (),
    near: Neighbourhood | None = None,
    start: Start | None = None,
    stop: Callable[[Student, int], bool] | None = None,
    on_progress: OnProgress | None = None,
    seed: int = 0,
) -> dict[str, DenseChange | LowRankChange]:
    """Return the weight changes that minimise `loss` plus the weighted terms.

    The pipeline is left as it was, bit for bit, also by an exception; only trained weights get gradients. Everything
    random comes from `seed`. Each term is differentiated in turn, so that one graph is held at a time. Masters and
    moments are float32; gradients through a float16 model are scaled against underflow.

    Args:
        backbone: Model.
        which: Accepts the full names of the parameters to train.
        loss: Main loss; scalar.
        optimisation: Settings of the loop.
        terms: Further terms.
        maps: Corrections of the gradients, in order; they see the gradient of the main loss and that of the terms.
        limits: Corrections of the optimiser's step, in order. A patch's first right factor and `start` count as steps.
        near: Neighbours of the weights at which the losses are averaged; None takes them at the weights alone.
        start: Start beside the weights; None starts at the weights.
        stop: Called after each update with the number of updates made; True ends the training.
        on_progress: Receives the progress after each update, with the loss and its weighted parts.
        seed: Seed of the losses' generators and of the patches' start, >= 0.

    Raises:
        InputError: There is no parameter to train, or maps or a start cannot be used with these settings.
        SolveError: The loss is no longer finite.
    """
    seeds = torch.Generator().manual_seed(seed)
    ordered = sorted(terms, key=lambda term: not term.erases)
    weighted = [(1.0, loss), *((term.weight, term.loss) for term in ordered)]
    starts, *draws = (torch.Generator().manual_seed(_number(seeds)) for _ in range(len(weighted) + 1))
    student = Student(backbone, which, optimisation.rank, starts, optimisation.last_rows)
    if start is not None:
        student.displace(start, starts, limits)
    around = None if near is None else _Around(near, torch.Generator().manual_seed(_number(seeds)))
    erasing = 1 + sum(term.erases for term in terms)
    update = _Update(student, optimisation, backbone, maps, limits, erasing, around)
    with at_rest(backbone):
        for step in range(optimisation.steps):
            parts = update(weighted, draws, step)
            done = step + 1
            enough = done < optimisation.steps and stop is not None and stop(student, done)
            if on_progress is not None:
                end = done if enough else optimisation.steps
                on_progress(Progress(done=done, total=end, loss=sum(parts), parts=tuple(parts), note=update.note()))
            if enough:
                break
    return student.changes()


def alternating(even: Sequence[WeightedLoss], odd: Sequence[WeightedLoss]) -> Loss:
    """Return a loss that has one group of losses at even steps and the other at odd ones."""

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        group = odd if step % 2 else even
        return torch.stack([each.weight * each.loss(student, step, generator) for each in group]).sum()

    return loss


def _number(seeds: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=seeds))


def below(n: int, generator: torch.Generator) -> int:
    """Return a random number from 0 to n - 1."""
    return int(torch.randint(n, (), generator=generator))


def uniform(generator: torch.Generator) -> float:
    """Return a random number in [0, 1)."""
    return float(torch.rand((), generator=generator))


@dataclass(frozen=True)
class _Around:
    """A neighbourhood with the generator of its draws."""

    neighbourhood: Neighbourhood
    generator: torch.Generator

    def offsets(self, student: Student, step: int) -> list[Gradient]:
        """Return the offsets of the weights themselves and of their neighbours."""
        return [{}, *self.neighbourhood.offsets(student, step, self.generator)]


class _Update:
    """One update of the student at a time."""

    def __init__(
        self,
        student: Student,
        optimisation: Optimisation,
        backbone: Backbone,
        maps: Sequence[GradientMap],
        limits: Sequence[StepMap],
        erasing: int,
        around: _Around | None,
    ) -> None:
        if maps and not optimisation.clear_gradients:
            raise InputError("finetune.maps: expected none where gradients are not cleared. Leave the transforms out.")
        self._student, self._settings, self._maps, self._limits = student, optimisation, maps, limits
        self._erasing, self._around = erasing, around
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimisation.optimizer]
        rows_lr = optimisation.lr if optimisation.last_rows_lr is None else optimisation.last_rows_lr
        leaves = student.leaves
        groups = [
            {"params": [leaf for key, leaf in leaves.items() if key.part != "rows"]},
            {"params": [leaf for key, leaf in leaves.items() if key.part == "rows"], "lr": rows_lr},
        ]
        self._optimizer = kind(
            [group for group in groups if group["params"]], lr=optimisation.lr, weight_decay=optimisation.weight_decay
        )
        self._lrs = [group["lr"] for group in self._optimizer.param_groups]
        self._scaler = torch.amp.GradScaler(backbone.device.type, enabled=backbone.dtype == torch.float16)
        if limits:
            self._limit_starts()

    def __call__(
        self, weighted: Sequence[tuple[float, Loss]], draws: Sequence[torch.Generator], step: int
    ) -> list[float]:
        """Make one update and return the weighted losses."""
        terms = list(zip(weighted, draws, strict=True))
        main, further = terms[: self._erasing], terms[self._erasing :]
        skipped = bool(step % self._settings.every)
        keep_too = self._around is not None and self._around.neighbourhood.keep_too
        points: list[Gradient] = [{}]
        if self._around is not None and (keep_too or not skipped):
            points = self._around.offsets(self._student, step)
        parts = [0.0] * len(main) if skipped else self._averaged(main, step, points)
        erase = self._take_gradients() if self._maps else {}
        parts += self._averaged(further, step, points if keep_too else [{}])
        if self._maps:
            self._put_gradients(erase, self._take_gradients(), step)
        total = sum(parts)
        if not torch.isfinite(torch.tensor(total)):
            raise SolveError(f"finetune: expected a finite loss, got {total} at step {step + 1}. Lower lr.")
        if self._settings.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._student.trained, self._settings.clip_norm)
        for group, lr in zip(self._optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * self._settings.share_of_lr(step)
        self._move()
        if self._settings.pull:
            self._student.pull_back(min(1.0, self._settings.pull * self._optimizer.param_groups[0]["lr"]))
        self._scaler.update()
        if self._settings.clear_gradients:
            self._optimizer.zero_grad()
        return parts

    def note(self) -> str:
        """Return the reports of the maps."""
        return "; ".join(note for note in (each.note() for each in self._maps) if note)

    def _averaged(self, terms: Sequence[_Drawn], step: int, points: Sequence[Gradient]) -> list[float]:
        """Return the weighted losses, mean over the points; gradients likewise."""
        if len(points) == 1:
            return self._backward(terms, step)
        shared = [((weight / len(points), term), generator) for (weight, term), generator in terms]
        totals = [0.0] * len(terms)
        for offsets in points:
            with self._student.moved(offsets):
                totals = [total + part for total, part in zip(totals, self._backward(shared, step), strict=True)]
        return totals

    def _backward(self, terms: Iterable[_Drawn], step: int) -> list[float]:
        parts: list[float] = []
        for (weight, term), generator in terms:
            if weight:
                value = weight * term(self._student, step, generator)
                # gradient checkpointing runs parts of the forward again
                self._student(torch.autograd.backward, self._scaler.scale(value))
                parts.append(value.item())
            else:
                parts.append(0.0)
        return parts

    def _take_gradients(self) -> dict[Leaf, Tensor]:
        """Take the unscaled gradients off the leaves; a leaf without one has zeros."""
        inverse = 1 / self._scaler.get_scale()  # a power of two: exact
        gradients: dict[Leaf, Tensor] = {}
        for key, leaf in self._student.leaves.items():
            gradients[key] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad * inverse
            leaf.grad = None
        return gradients

    def _put_gradients(self, erase: Gradient, keep: Gradient, step: int) -> None:
        for each in self._maps:
            erase, keep = each(erase, keep, step)
        scale = self._scaler.get_scale()
        for key, leaf in self._student.leaves.items():
            leaf.grad = (erase[key] + keep[key]) * scale

    @torch.no_grad()
    def _limit_starts(self) -> None:
        starts = {key: leaf.detach() for key, leaf in self._student.leaves.items() if key.part == "down"}
        limited: Gradient = starts
        for limit in self._limits if starts else ():
            limited = limit(limited)
        for key in starts:
            self._student.leaves[key].copy_(limited[key])

    @torch.no_grad()
    def _move(self) -> None:
        if not self._limits:
            self._scaler.step(self._optimizer)
            return
        leaves = self._student.leaves
        before = {key: leaf.detach().clone() for key, leaf in leaves.items()}
        self._scaler.step(self._optimizer)
        step: Gradient = {key: leaf.detach() - before[key] for key, leaf in leaves.items()}
        for limit in self._limits:
            step = limit(step)
        for key, leaf in leaves.items():
            leaf.copy_(before[key] + step[key])
