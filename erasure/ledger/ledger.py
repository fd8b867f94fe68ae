"""The record of removals on one base model: add, undo any of them, replay, verify.

A ledger is a folder: `ledger.json` lists the removals in order, `edits/` holds one safetensors file for each, `rows/`
the text states that several of them share, `memory/` what continual methods make once and use for every removal; it
may be deleted and is then made again. A removal counts once `ledger.json` names it, and that file is only ever replaced
whole, so a process that is killed at any moment leaves the last complete state.

The standing edit is computed from the original weights, never by subtraction: closed-form removals by one joint solve,
which makes their order irrelevant and undoing one exact, then the changes of trained removals, in order. A trained
removal was fitted on top of those before it, so undoing one beneath it is an approximation and is labelled so.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline
from typing_extensions import Unpack

from ..arguments import checks_arguments
from ..backbones import backbone_of
from ..concept import Concept
from ..edits import Edit, EditMetadata, SamplingEdit, WeightEdit, joint, weights_of
from ..edits.metadata import now
from ..erasers import Eraser
from ..errors import AlreadyRemovedError, BaseMismatchError, ErasureError, LedgerError
from ..io.processes import by_first
from ..io.text import slug as text_slug
from .checks import check_addable, check_distinct, problems_of, relative_move
from .fits import Fit, FitOptions, Fitter
from .record import FORMAT, Base, Entry, Origin, Record, is_ledger
from .store import LedgerStore
from .view import LedgerView


@checks_arguments
class Ledger(LedgerView):
    """An open ledger: the record as last read or written. A change reads the file again first, under a lock.

    Attributes:
        path: The folder.
    """

    @classmethod
    def create(
        cls, path: str | Path, base_fingerprint: str, base_name: str, *, origin: Origin | None = None
    ) -> "Ledger":
        """Start an empty ledger in a folder, which is made if needed.

        Args:
            path: The folder.
            base_fingerprint: Fingerprint of the base model.
            base_name: Argument of `load_model` for it.
            origin: Ledger whose removals are made again in this one; None without one.

        Raises:
            LedgerError: There is a ledger already, or the folder cannot be made.
            InputError: The record cannot be written.
        """
        base = Base(name=base_name, fingerprint=base_fingerprint)
        record = Record(format=FORMAT, base=base, entries=(), origin=origin)
        return cls(LedgerStore.create(Path(path), record))

    @classmethod
    def open(cls, path: str | Path) -> "Ledger":
        """Open the ledger of a folder.

        Raises:
            LedgerError: There is none, or its record is damaged.
        """
        return cls(LedgerStore.open(Path(path)))

    @classmethod
    def open_or_create(cls, path: str | Path, pipe: DiffusionPipeline, name: str) -> "Ledger":
        """Open the ledger of a folder, or start one for the pipeline.

        Args:
            path: The folder.
            pipe: The unedited base model.
            name: Argument of `load_model` for it.

        Raises:
            BaseMismatchError: The ledger is about another base.
            LedgerError: See `open` and `create`.
        """
        fingerprint = backbone_of(pipe).fingerprint()
        if not is_ledger(path):
            record = Record(format=FORMAT, base=Base(name=name, fingerprint=fingerprint), entries=())
            return cls(LedgerStore.create(Path(path), record, or_open=True))
        ledger = cls.open(path)
        ledger.check_base(fingerprint, name)
        return ledger

    def remove(
        self,
        pipe: DiffusionPipeline,
        eraser: Eraser,
        concepts: Sequence[Concept],
        *,
        distinct: bool = False,
        **options: Unpack[FitOptions],
    ) -> Entry:
        """Fit a removal on top of the standing ones, and add it; the pipeline is left as it was.

        Args:
            pipe: The unedited base model.
            eraser: The method.
            concepts: Concepts to remove, as one entry.
            distinct: Whether a concept that stands removed already is refused.
            options: See `FitOptions`.

        Raises:
            BaseMismatchError: The pipeline is not the ledger's base.
            AlreadyRemovedError: See `distinct`.
            InputError: The method cannot remove these concepts, or not beside a removal that stands.
            LedgerError: The folder cannot be changed, or a standing removal cannot be read; nothing is added.
        """
        return next(self.remove_each(pipe, eraser, [concepts], distinct=distinct, **options))

    def remove_each(
        self,
        pipe: DiffusionPipeline,
        eraser: Eraser,
        requests: Sequence[Sequence[Concept]],
        *,
        distinct: bool = False,
        on_removed_already: Callable[[Sequence[Concept]], None] | None = None,
        **options: Unpack[FitOptions],
    ) -> Iterator[Entry]:
        """Make the entries of `remove` of several requests, in order: each is in the ledger before it is yielded.

        Where the method depends on text states alone, those of many requests are read together. Processes that work
        together share the reading out, and the first of them fits and writes.

        Args:
            pipe: The unedited base model.
            eraser: The method.
            requests: Concepts of each entry.
            distinct: See `remove`, also for `options`.
            on_removed_already: Receives a request that `distinct` refuses and that is left out; None makes it an error.
            options: See `remove`.
        """
        self.check_whole()
        fits = Fitter(self, self._store.load, self._unedited(), pipe, eraser, **options).fits(requests)
        for concepts, fit in fits:
            try:
                entry = by_first(partial(self._add, fit, distinct=distinct))
            except AlreadyRemovedError:
                if on_removed_already is None:
                    raise
                on_removed_already(concepts)
            else:
                self._store.refresh()
                yield entry

    def add(self, edit: Edit, *, distinct: bool = False) -> Entry:
        """Add an edit that was fitted on the base itself.

        Raises:
            BaseMismatchError: It was fitted on another model.
            AlreadyRemovedError: See `remove`, also for `LedgerError`.
        """
        self.check_base(edit.metadata.base_fingerprint, edit.metadata.base_name)
        return self._add(lambda: Fit(edit=edit), distinct=distinct)

    def undo(self, name: str) -> Entry:
        """Undo a removal, whichever it is; its file stays, and so does its line in the record.

        Raises:
            UnknownNameError: There is no such removal.
            LedgerError: It was undone already, or the folder cannot be changed.
        """
        with self._store.locked():
            entry = self.entry(name)
            if entry.state == "undone":
                raise LedgerError(
                    f"ledger entry {entry.id}: expected one that stands, got one undone at {entry.undone}."
                )
            undone = replace(entry, state="undone", undone=now())
            entries = tuple(undone if other.id == entry.id else other for other in self.entries)
            self._store.write(replace(self._store.record, entries=entries))
        return undone

    @property
    def during_sampling(self) -> tuple[Entry, ...]:
        """The standing removals that act during sampling."""
        return tuple(entry for entry in self.standing if isinstance(self._store.load(entry), SamplingEdit))

    def edit(self, upto: str | None = None) -> Edit:
        """Return the standing removals as one edit of the base: a `SamplingEdit` if one of them acts during sampling.

        Args:
            upto: Id of the last removal to include; None includes all.

        Raises:
            UnknownNameError: There is no removal `upto`.
            LedgerError: A file is missing or is not the one that was added.
        """
        entries = self.standing_upto(upto)
        if not entries:
            return self._unedited()
        return self._on_base(joint([self._store.load(entry) for entry in entries]))

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline, upto: str | None = None) -> Generator[DiffusionPipeline]:
        """Apply the standing removals for the length of a `with`; on exit the pipeline is as it was, bit for bit.

        Raises:
            BaseMismatchError: The pipeline is not the ledger's base.
            LedgerError: See `edit`.
        """
        with self.edit(upto).applied_to(pipe):
            yield pipe

    def moved(self, pipe: DiffusionPipeline) -> dict[str, float]:
        """Return the move of the weights beneath each approximate removal since it was fitted, relative to its change.

        Args:
            pipe: The unedited base model.

        Returns:
            By id, the norm of the move over the norm of the removal's own change, over the weights that it changes.

        Raises:
            BaseMismatchError: The pipeline is not the ledger's base.
            LedgerError: See `edit`.
        """
        backbone = backbone_of(pipe)
        self.check_base(backbone.fingerprint(), str(pipe.name_or_path))
        moves: dict[str, float] = {}
        for entry in map(self.entry, self.approximate):
            then = [self.entry(name) for name in entry.started_from]
            beneath = (then, [other for other in then if other.state == "standing"])
            sides = (
                weights_of(joint(list(map(self._store.load, entries)))) if entries else None for entries in beneath
            )
            moves[entry.id] = relative_move(backbone, weights_of(self._store.load(entry)), *sides)
        return moves

    def verify(self, pipe: DiffusionPipeline | None = None) -> list[str]:
        """Return all faults, a line each: files by hash, solved removals by solving them again, the base.

        Args:
            pipe: The unedited base model, to compare its fingerprint; None leaves that out.
        """
        problems = [problem for entry in self.entries for problem in problems_of(self._store, entry)]
        if pipe is not None:
            try:
                self.check_base(backbone_of(pipe).fingerprint(), str(pipe.name_or_path))
            except BaseMismatchError as error:
                problems.append(str(error))
        if not problems:
            try:
                self.edit()
            except ErasureError as error:
                problems.append(f"what stands cannot be put together: {error}")
        return problems

    def _add(self, fitted: Callable[[], Fit], *, distinct: bool) -> Entry:
        fit = fitted()
        edit = self._on_base(fit.edit)  # the fit saw the edited base
        with self._store.locked():
            if distinct:  # here, because another process may have removed it since the fit began
                check_distinct(self._store.standing, edit.metadata.concepts)
            self._store.check_whole()
            check_addable(self._store, edit)
            number = f"{len(self.entries) + 1:03d}"
            file = f"edits/{number}-{slug(edit.metadata.concepts)}.safetensors"
            entry = _entry(number, replace(fit, edit=edit), file, self._store.save(edit, file))
            self._store.write(replace(self._store.record, entries=(*self.entries, entry)))
        return entry

    def _on_base(self, edit: Edit) -> Edit:
        metadata = replace(edit.metadata, base_fingerprint=self.base.fingerprint, base_name=self.base.name)
        return edit.with_metadata(metadata)

    def _unedited(self) -> WeightEdit:
        return WeightEdit(changes={}, metadata=EditMetadata.unedited(self.base.fingerprint, self.base.name))


def _entry(number: str, fit: Fit, file: str, sha256: str) -> Entry:
    edit, origin = fit.edit, fit.edit.metadata
    solved = isinstance(edit, WeightEdit) and edit.closed_form
    return Entry(
        id=number,
        time=now(),
        concepts=origin.concepts,
        method=origin.method,
        settings=dict(origin.settings),
        seed=origin.seed,
        file=file,
        sha256=sha256,
        solved=solved,
        # A thousand entries that each listed all before them would make the file grow with their square.
        started_from=() if solved else fit.started_from,
        seconds=fit.seconds,
    )


def slug(concepts: Sequence[Concept]) -> str:
    """Return the targets as a short part of a file name."""
    return text_slug("-".join(concept.target for concept in concepts), 40, "concept")
