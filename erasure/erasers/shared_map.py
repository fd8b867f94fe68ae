"""Base of the erasers whose edit is one map of text states, the same for all layers that read them."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import ClassVar, Protocol, runtime_checkable

from ..backbones.base import Backbone
from ..closed_form.problem import Rows
from ..concept import Concept
from ..edits import Edit, WeightEdit
from ..edits.metadata import now
from ..progress import Progress
from ..training.context import FitContext
from .base import EditFit, Eraser, Stage

_READ_TOGETHER = 32  # requests; a run that ends early has read no more in vain


@runtime_checkable
class ProblemReader(Protocol):
    """Reader of the least-squares problems of removals from the text states of many of them."""

    def read(self, requests: Sequence[Sequence[Concept]]) -> None:
        """Read the text states of requests together; of those before, what these share is not read again."""
        ...

    def problems(self, concepts: Sequence[Concept]) -> tuple[Rows, ...]:
        """Return the problems that remove the concepts of a request that was read, one for each text stream."""
        ...


@dataclass(frozen=True, kw_only=True)
class SharedMap(Eraser):
    """Base of the erasers whose edit is one map of text states, the solution of rows, in projections that read them."""

    stage: ClassVar[Stage] = "map of text states"

    @abstractmethod
    def reader(self, context: FitContext) -> ProblemReader:
        """Return the reader of the problems."""

    @abstractmethod
    def projections(self, backbone: Backbone, space: str) -> list[str]:
        """Return the full names of the layers that are edited and read a text stream."""

    def problems_of(self, concepts: Sequence[Concept], context: FitContext) -> tuple[Rows, ...]:
        """Return the least-squares problems that remove the concepts, one for each text stream.

        Raises:
            InputError: There are no concepts, or a name is longer than what the model reads.
        """
        self.require(concepts, context.backbone)
        reader = self.reader(context)
        reader.read([concepts])
        return reader.problems(concepts)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        return next(self._solved_lots([concepts], context))[0]()

    def fit_lots(self, requests: Sequence[Sequence[Concept]], context: FitContext) -> Iterator[Sequence[EditFit[Edit]]]:
        if self.dependence == "weights":  # in a form that is no single map
            return super().fit_lots(requests, context)
        return self._solved_lots(requests, context)

    def _solved_lots(
        self, requests: Sequence[Sequence[Concept]], context: FitContext
    ) -> Iterator[Sequence[EditFit[WeightEdit]]]:
        for concepts in requests:
            self.require(concepts, context.backbone)
        origin = self.metadata((), context)
        layers = cache(partial(self.projections, context.backbone))
        reader = self.reader(context)

        def solved(concepts: Sequence[Concept]) -> WeightEdit:
            metadata = replace(origin, concepts=tuple(concepts), time=now())
            edit = WeightEdit.from_problems(reader.problems(concepts), layers, metadata)
            if context.on_progress is not None:
                context.on_progress(Progress(done=1, total=1))
            return edit

        for start in range(0, len(requests), _READ_TOGETHER):
            lot = requests[start : start + _READ_TOGETHER]
            reader.read(lot)
            yield [partial(solved, concepts) for concepts in lot]
