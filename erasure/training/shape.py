"""The shape of an update, the same settings in every trained eraser: terms, transforms, selector and finishes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..edits import DenseChange, LowRankChange, WeightEdit
from ..edits.finish import Finish
from ..errors import InputError
from ..progress import OnProgress
from ..registry import Chosen, Settings
from .context import TrainingTask
from .early_stopping import Until
from .finetune import Loss, Optimisation, WeightedLoss, finetune
from .flatness import Flat
from .memory import check_room
from .objectives import OBJECTIVES, Objective
from .selectors import Selector
from .student import Reset, Student, checkpointed
from .terms import TERMS, Term
from .transforms import Transform

Weight = Annotated[float, Field(ge=0)]
TermSettings = Mapping[str, bool | int | float | str]
Schedule = Literal["joint", "cyclic", "modular"]

_BLOCK = 25  # updates on one target, of MELU's modules


@dataclass(frozen=True, kw_only=True)
class Shape(Settings):
    """The pieces that shape an update; without any, a training follows the eraser's own losses.

    Attributes:
        keep: Terms by name, each with its weight or its settings: `{attention: 1.0, semantic-noise: {weight: 2.0}}`;
            see `erasure.training.terms`.
        gradients: Transforms, in order; see `erasure.training.transforms`.
        sites: Selector of the weights to train among those of the eraser; None trains all of them.
        finish: Finishes of the edit, in order; see `erasure.edits.finish`.
        reset: Start at weights that are part noise, for a removal that shall survive relearning; None starts at the
            weights.
        flat: Neighbours of the weights at which the losses are averaged; None takes them at the weights alone.
        schedule: Order of several targets: "joint", each draw has its own; "cyclic", they take turns; or "modular",
            blocks of 25 updates on one target with the terms of its own preserved names (MELU, arXiv:2509.05316).
        unforgotten: Whether a noised image counts only while the target's prompt still explains it better than the
            anchor's does for the reference: |eps(x_t, c) - eps|^2 < |eps_0(x_t, a) - eps|^2 (KLUE, arXiv:2502.19207).
        every: Updates of which one erases, > 0; the others follow the terms alone (LWF, arXiv:2505.19715).
        until: End of the training before its last step; None is that of the eraser.
        checkpointing: Whether the activations of the denoiser's blocks are computed again in the backward pass, which
            takes less memory and a third more time.
    """

    keep: Mapping[str, Weight | TermSettings] = field(default_factory=dict[str, Weight | TermSettings])
    gradients: tuple[Chosen[Transform], ...] = ()
    sites: Chosen[Selector] | None = None
    finish: tuple[Chosen[Finish], ...] = ()
    reset: Reset | None = None
    flat: Flat | None = None
    schedule: Schedule = "joint"
    unforgotten: bool = False
    every: Annotated[int, Field(ge=1)] = 1
    until: Until | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        _ = self.terms  # refuses unknown terms and settings now

    @property
    def terms(self) -> list[Term]:
        """Terms with a weight above 0."""
        terms = [
            TERMS.make(name, **(settings if isinstance(settings, Mapping) else {"weight": settings}))
            for name, settings in self.keep.items()
        ]
        return [term for term in terms if term.weight]

    def weighted(self, task: TrainingTask) -> list[WeightedLoss]:
        """Return the losses of the terms.

        Raises:
            InputError: A term has nothing to preserve, or does not depend on the trained weights.
        """
        names = list(task.backbone.parameters(task.trained))
        for term in self.terms:
            _check_reach(term, names, task)
        return [
            WeightedLoss(loss=self._by_target(term.loss, task, modular=True), weight=term.weight, erases=term.erases)
            for term in self.terms
        ]

    def train(
        self,
        task: TrainingTask,
        main: Loss | Objective,
        optimisation: Optimisation,
        *,
        terms: Iterable[WeightedLoss] = (),
        stop: Callable[[Student, int], bool] | None = None,
        on_progress: OnProgress | None = None,
    ) -> dict[str, DenseChange | LowRankChange]:
        """Return the weight changes that a training learns.

        Args:
            task: Model, concepts and weights.
            main: Main loss, or the objective that has it.
            optimisation: Settings of the loop.
            terms: The eraser's own further terms, before those of `keep`.
            stop: See `finetune`.
            on_progress: Receives the progress; None is the context's.

        Raises:
            InputError: A piece cannot be used for these concepts or weights.
            SolveError: The loss is no longer finite.
        """
        task = replace(task, unforgotten=self.unforgotten)
        masked = None
        if self.sites is not None:
            selection = self.sites.selected(task)
            task, masked = replace(task, trained=selection.names.__contains__), selection.limit()
        limits = [each.limiting(task) for each in self.gradients]
        if self.checkpointing and not task.backbone.checkpoints:
            raise InputError(
                f"shape.checkpointing: expected a model that computes the same again, got {task.backbone.family}."
                " Leave it out."
            )
        check_room(task, optimisation.rank, checkpointing=self.checkpointing)
        weighted = [*terms, *self.weighted(task)]
        if self.every > 1 and not any(term.weight and not term.erases for term in weighted):
            raise InputError(
                f"shape.every: expected 1 without a term to follow between, got {self.every!r}. Add one to shape.keep."
            )
        with checkpointed(task.backbone) if self.checkpointing else nullcontext():
            return finetune(
                task.backbone,
                task.trained,
                self._main(main, task),
                optimisation if self.every == 1 else replace(optimisation, every=self.every),
                terms=weighted,
                maps=[gradient_map for each in self.gradients if (gradient_map := each.prepared(task)) is not None],
                limits=[limit for limit in (*limits, masked) if limit is not None],
                near=None if self.flat is None else self.flat.neighbourhood(task),
                start=None if self.reset is None else self.reset.offset,
                stop=stop if self.until is None else self.until.stop(task),
                on_progress=on_progress or task.context.on_progress,
                seed=task.context.seed,
            )

    def _main(self, main: Loss | Objective, task: TrainingTask) -> Loss:
        """Return the main loss.

        Raises:
            InputError: The objective does not weigh single images, or the eraser draws its targets itself.
        """
        if isinstance(main, Objective):
            encoders = task.backbone.tokenizers()
            trained = task.backbone.parameters(task.trained)
            if not main.reads_encoder and any(name.partition(".")[0] in encoders for name in trained):
                known = [name for name, kind in OBJECTIVES.classes().items() if kind.reads_encoder]
                raise InputError(
                    f"shape.sites: expected an objective that trains a text encoder, got {main.name!r}."
                    f" Use {' or '.join(known)}."
                )
            if self.unforgotten and not main.weighs_images:
                known = [name for name, kind in OBJECTIVES.classes().items() if kind.weighs_images]
                raise InputError(
                    f"shape.unforgotten: expected an objective that weighs single images, got {main.name!r}."
                    f" Use {' or '.join(known)}."
                )
            return self._by_target(main.loss, task)
        for setting, neutral in (("schedule", "joint"), ("unforgotten", False)):
            if (value := getattr(self, setting)) != neutral:
                raise InputError(
                    f"shape.{setting}: expected {neutral!r} for an eraser that draws its targets itself, got {value!r}."
                    " Use tune or esd."
                )
        return main

    def _by_target(self, loss_of: Callable[[TrainingTask], Loss], task: TrainingTask, *, modular: bool = False) -> Loss:
        """Return a loss that has the targets in the order of the schedule.

        Args:
            loss_of: Returns the loss of a task.
            task: Task of all targets.
            modular: Whether only a modular schedule parts it.
        """
        parted = self.schedule == "modular" or (self.schedule == "cyclic" and not modular)
        if not parted or len(task.concepts) == 1:
            return loss_of(task)
        parts = [loss_of(replace(task, requests=(concept,))) for concept in task.concepts]
        block = _BLOCK if self.schedule == "modular" else self.every

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            return parts[step // block % len(parts)](student, step, generator)

        return loss

    def finished(self, edit: WeightEdit, task: TrainingTask) -> WeightEdit:
        """Return the edit after the finishes."""
        for each in self.finish:
            edit = each.applied(edit, task.backbone)
        return edit


def _check_reach(term: Term, names: Sequence[str], task: TrainingTask) -> None:
    if term.reaches(names, task.backbone):
        return
    others = [name for name, other in TERMS.classes().items() if other.reaches(names, task.backbone)]
    raise InputError(
        f"shape.keep.{term.name}: expected trained weights that it depends on, got {', '.join(names[:2])}, ..."
        f" whose gradient would be zero. Use {' or '.join(others) or 'none'}."
    )
