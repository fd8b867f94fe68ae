"""The shape of an update, the same settings in every trained eraser: terms, transforms, selector and finishes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from ..edits import DenseChange, LowRankChange, WeightEdit
from ..edits.finish import Finish
from ..errors import InputError
from ..progress import OnProgress
from ..registry import Chosen, Settings
from .context import TrainingTask
from .finetune import Loss, Optimisation, WeightedLoss, finetune
from .selectors import Selector
from .student import Student
from .terms import TERMS, Term
from .transforms import Transform

Weight = Annotated[float, Field(ge=0)]
TermSettings = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, kw_only=True)
class Shape(Settings):
    """The pieces that shape an update; without any, a training follows the eraser's own losses.

    Attributes:
        keep: Terms by name, each with its weight or its settings: `{attention: 1.0, semantic-noise: {weight: 2.0}}`;
            see `erasure.training.terms`.
        gradients: Transforms, in order; see `erasure.training.transforms`.
        sites: Selector of the weights to train among those of the eraser; None trains all of them.
        finish: Finishes of the edit, in order; see `erasure.edits.finish`.
    """

    keep: Mapping[str, Weight | TermSettings] = field(default_factory=dict)
    gradients: tuple[Chosen[Transform], ...] = ()
    sites: Chosen[Selector] | None = None
    finish: tuple[Chosen[Finish], ...] = ()

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
        return [WeightedLoss(loss=term.loss(task), weight=term.weight) for term in self.terms]

    def train(
        self,
        task: TrainingTask,
        loss: Loss,
        optimisation: Optimisation,
        *,
        terms: Iterable[WeightedLoss] = (),
        stop: Callable[[Student, int], bool] | None = None,
        on_progress: OnProgress | None = None,
    ) -> dict[str, DenseChange | LowRankChange]:
        """Return the weight changes that a training learns.

        Args:
            task: Model, concepts and weights.
            loss: Main loss.
            optimisation: Settings of the loop.
            terms: The eraser's own further terms, before those of `keep`.
            stop: See `finetune`.
            on_progress: Receives the progress; None is the context's.

        Raises:
            InputError: A piece cannot be used for these concepts or weights.
            SolveError: The loss is no longer finite.
        """
        limits = [step_map for each in self.gradients if (step_map := each.limiting(task)) is not None]
        if self.sites is not None:
            selection = self.sites.selected(task)
            task = replace(task, trained=selection.names.__contains__)
            if (limit := selection.limit()) is not None:
                limits.append(limit)
        return finetune(
            task.backbone,
            task.trained,
            loss,
            optimisation,
            terms=[*terms, *self.weighted(task)],
            maps=[gradient_map for each in self.gradients if (gradient_map := each.prepared(task)) is not None],
            limits=limits,
            stop=stop,
            on_progress=on_progress or task.context.on_progress,
            seed=task.context.seed,
        )

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
