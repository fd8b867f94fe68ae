"""Fits of removals on top of those that stand in a ledger."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline
from typing_extensions import TypedDict

from ..backbones import backbone_of
from ..backbones.base import Backbone
from ..backbones.name_lengths import check_names
from ..concept import Concept, distinct
from ..edits import Edit, SamplingEdit, WeightEdit, weights_of
from ..erasers import Eraser
from ..judge import Judge
from ..progress import OnProgress
from ..training.context import FitContext, History
from .record import Entry
from .view import LedgerView


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """One fit.

    Attributes:
        edit: Its result, of the model as it was then.
        started_from: Standing removals on whose weights it was fitted.
        seconds: Its duration; of fits that read their text states together, with an equal share of that. None for an
            edit that was fitted elsewhere.
    """

    edit: Edit
    started_from: tuple[str, ...] = ()
    seconds: float | None = None


class FitOptions(TypedDict, total=False):
    """Options of a fit.

    Attributes:
        on_progress: Receives the progress of the fit.
        seed: Seed of the fit, >= 0.
        judge: Judge of images for methods that look at them; None without one.
    """

    on_progress: OnProgress | None
    seed: int
    judge: Judge | None


@dataclass(frozen=True, eq=False)
class Fitter:
    """Fits removals by one method.

    Attributes:
        ledger: Record of the removals that stand.
        load: Function of an entry to its edit.
        unedited: Edit that changes nothing.
        pipe: The unedited base model.
        eraser: The method.
        on_progress: See `FitOptions`.
        seed: Seed of the fits.
        judge: Judge of images.
    """

    ledger: LedgerView
    load: Callable[[Entry], Edit]
    unedited: WeightEdit
    pipe: DiffusionPipeline
    eraser: Eraser
    on_progress: OnProgress | None = None
    seed: int = 0
    judge: Judge | None = None

    def fits(self, requests: Sequence[Sequence[Concept]]) -> Iterator[tuple[Sequence[Concept], Callable[[], Fit]]]:
        """Yield several requests, in order, each with its fit; text states are read together where no weights matter.

        In processes that work together all of them read the text states, so each must take all that this yields.

        Raises:
            BaseMismatchError: The pipeline is not the ledger's base.
            InputError: The method cannot remove these concepts.
        """
        requests = list(map(distinct, requests))
        if not requests:  # all stand removed
            return
        if self.eraser.dependence != "weights":
            yield from self._together(requests)
            return
        for concepts in requests:
            yield concepts, partial(self._on_top, concepts)

    def _together(self, requests: Sequence[Sequence[Concept]]) -> Iterator[tuple[Sequence[Concept], Callable[[], Fit]]]:
        """Yield the fits of requests whose edits depend on no other removal."""
        # The rows of earlier targets are kept: the joint solve leaves them out while those removals stand, and has them
        # again when they are undone.
        context = self._context(self._checked(requests), History(memory=self._memory))
        left = iter(requests)
        start = time.perf_counter()
        for lot in self.eraser.fit_lots(requests, context):
            share = (time.perf_counter() - start) / len(lot)
            for fit in lot:
                yield next(left), partial(_timed, fit, share)
            start = time.perf_counter()

    def _on_top(self, concepts: Sequence[Concept]) -> Fit:
        """Return the fit of a request on the weights that the standing removals leave."""
        backbone = self._checked([concepts])
        standing = self.ledger.standing
        # The fit sees the weights of earlier removals, without the guidance of those that act during sampling.
        edits = {entry.id: self.load(entry) for entry in standing}
        beneath = {name: weights_of(edit) for name, edit in edits.items() if not isinstance(edit, SamplingEdit)}
        edit = WeightEdit.joint(list(beneath.values())) if beneath else self.unedited
        history = History(
            targets=tuple(concept for entry in standing for concept in entry.concepts),
            originals={name: p.data for name, p in backbone.parameters(edit.changes.__contains__).items()},
            memory=self._memory,
        )
        start = time.perf_counter()
        with edit.applied_to(self.pipe, check=False):
            fitted = self.eraser.fit(concepts, self._context(backbone, history))
        seconds = round(time.perf_counter() - start, 3)
        return Fit(edit=fitted, started_from=tuple(beneath), seconds=seconds)

    @property
    def _memory(self) -> Path:
        return self.ledger.path / "memory"

    def _checked(self, requests: Sequence[Sequence[Concept]]) -> Backbone:
        """Return the base model's backbone, if it is the ledger's and reads the names of all concepts whole."""
        backbone = backbone_of(self.pipe)
        self.ledger.check_base(backbone.fingerprint(), str(self.pipe.name_or_path))
        check_names([concept for concepts in requests for concept in concepts], backbone)
        for concepts in requests:
            self.ledger.check_together(self.eraser, concepts)
        return backbone

    def _context(self, backbone: Backbone, history: History) -> FitContext:
        return FitContext(
            backbone=backbone, history=history, judge=self.judge, seed=self.seed, on_progress=self.on_progress
        )


def _timed(fit: Callable[[], Edit], before: float) -> Fit:
    """Return a fit with its seconds and those before it."""
    start = time.perf_counter()
    edit = fit()
    return Fit(edit=edit, seconds=round(before + time.perf_counter() - start, 3))
