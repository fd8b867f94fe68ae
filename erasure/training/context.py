"""The surroundings of a fit: the model, the removals before it, a judge of images, a seed."""
# pyright: reportUnnecessaryIsInstance=false
# A caller without a type checker gets one line too.

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.usable import check_editable, check_finite
from ..concept import Concept, normalized, normalized_names
from ..edits.changes import exchanged
from ..errors import InputError
from ..graph import ConceptGraph
from ..judge import Judge
from ..progress import OnProgress
from ..typed_torch import integers
from .phrases import class_phrases
from .trajectories import POOL_SIZE, TrajectoryPoints, trajectory_points


@dataclass(frozen=True, kw_only=True)
class History:
    """The removals before a fit.

    Attributes:
        targets: Concepts removed so far, in order.
        originals: Weights of the model before the first removal, by full parameter name; only those that differ now.
        memory: Folder of images and statistics that all removals share; None keeps nothing.
    """

    targets: tuple[Concept, ...] = ()
    originals: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    memory: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FitContext:
    """The surroundings of one fit.

    Attributes:
        backbone: Model as it is now, with the earlier removals in force.
        history: Earlier removals.
        judge: Judge of the model's images; None without one.
        seed: Seed of everything random in the fit, >= 0.
        on_progress: Receives the progress of a fit of many steps.
        replaced: Weights as they were before the earlier parts of the same removal, by full parameter name; only those
            that differ now.

    Raises:
        InputError: The seed is no whole number that a generator takes, or an edit would not reach the model's weights,
            or they are not finite.
    """

    backbone: Backbone
    history: History = History()
    judge: Judge | None = None
    seed: int = 0
    on_progress: OnProgress | None = None
    replaced: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed: expected a whole number from 0 to 2^63 - 1, got {self.seed!r}. Give another one.")
        check_editable(self.backbone)
        check_finite(self.backbone)

    @contextmanager
    def original(self) -> Generator[None]:
        """Put the weights from before the first removal in force for the length of a `with`."""
        originals = self.history.originals
        with exchanged(self.backbone.parameters(originals.__contains__), originals):
            yield

    @contextmanager
    def before_parts(self) -> Generator[None]:
        """Put the weights from before the earlier parts of this removal in force for the length of a `with`."""
        with exchanged(self.backbone.parameters(self.replaced.__contains__), self.replaced):
            yield

    @property
    def encoders_changed(self) -> bool:
        """Whether an earlier removal, or an earlier part of this one, changed a text encoder."""
        encoders = self.backbone.tokenizers()
        return any(name.partition(".")[0] in encoders for name in (*self.history.originals, *self.replaced))

    @property
    def targets(self) -> tuple[Concept, ...]:
        """Concepts removed so far, in order."""
        return self.history.targets


Reference = Callable[[], AbstractContextManager[object]]
"""Puts the weights of the model that is to be kept in force for the length of a `with`."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """One training inside a fit, as objectives, terms, transforms and selectors see it.

    Attributes:
        context: Surroundings of the fit.
        requests: Concepts to remove, as they were requested.
        trained: Accepts the full names of the parameters that are trained.
        reference: Model to be kept; by default the one that the training starts from.
        batch_size: Latents a step of the objective, > 0.
        unforgotten: Whether an objective that weighs single images leaves out those that are forgotten.
    """

    context: FitContext
    requests: Sequence[Concept]
    trained: Callable[[str], bool]
    reference: Reference = nullcontext
    batch_size: int = 1
    unforgotten: bool = False

    @property
    def backbone(self) -> Backbone:
        """Model under training."""
        return self.context.backbone

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """The requests, each without the removed names in what it preserves."""
        removed = normalized_names(*self.context.targets, *self.requests)
        return tuple(
            replace(request, preserve=tuple(name for name in request.preserve if normalized(name) not in removed))
            for request in self.requests
        )

    @cached_property
    def graph(self) -> ConceptGraph:
        """Similarities of the concepts, their preserved names and the earlier targets; computed once."""
        concepts = [*self.concepts, *self.context.targets]
        return ConceptGraph.of(self.backbone, [name for c in concepts for name in (*c.names, *c.preserve)])

    @cached_property
    def pool(self) -> TrajectoryPoints:
        """Latents on the reference's trajectories of class phrases, for pieces that share them; sampled once."""
        generator = torch.Generator().manual_seed(self.context.seed)
        phrases = class_phrases(self.concepts) or [""]
        prompts = [phrases[i] for i in integers(torch.randint(len(phrases), (POOL_SIZE,), generator=generator))]
        with self.reference():
            return trajectory_points(self.backbone, prompts, generator)
