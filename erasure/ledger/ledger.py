"""The record of removals on one base model: add, undo any of them, replay, verify.

A ledger is a folder: `ledger.json` lists the removals in order, `edits/` holds one safetensors file for each, `rows/`
the text states that several of them share, `memory/` what continual methods make once and use for every removal; it
may be deleted and is then made again. A removal counts once `ledger.json` names it, and that file is only ever replaced
whole, so a process that is killed at any moment leaves the last complete state.

The standing edit is computed from the original weights, never by subtraction: closed-form removals by one joint solve,
which makes their order irrelevant and undoing one exact, then the changes of trained removals, in order. A trained
removal was fitted on top of those before it, so undoing one beneath it is an approximation and is labelled so.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline

from ..backbones import backbone_of
from ..backbones.name_lengths import check_names
from ..concept import Concept
from ..concept import distinct as one_of_each
from ..edits import Edit, EditMetadata, SamplingEdit, WeightEdit, joint, weights_of
from ..edits.metadata import now
from ..erasers import Eraser
from ..errors import BaseMismatchError, ErasureError, LedgerError
from ..io.text import slug as text_slug
from ..judge import Judge
from ..progress import OnProgress
from ..training.context import FitContext, History
from .checks import check_addable, check_distinct, check_together, problems_of, relative_move
from .record import FORMAT, Base, Entry, Origin, Record, is_ledger
from .store import LedgerStore
from .view import LedgerView


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
        on_progress: OnProgress | None = None,
        seed: int = 0,
        judge: Judge | None = None,
        distinct: bool = False,
    ) -> Entry:
        """Fit a removal on top of the standing ones, and add it; the pipeline is left as it was.

        Args:
            pipe: The unedited base model.
            eraser: The method.
            concepts: Concepts to remove, as one entry.
            on_progress: Receives the progress of the fit.
            seed: Seed of the fit, >= 0.
            judge: Judge of images for methods that look at them; None without one.
            distinct: Whether a concept that stands removed already is refused.

        Raises:
            BaseMismatchError: The pipeline is not the ledger's base.
            AlreadyRemovedError: See `distinct`.
            InputError: The method cannot remove these concepts, or not beside a removal that stands.
            LedgerError: The folder cannot be changed, or a standing removal cannot be read; nothing is added.
        """
        backbone = backbone_of(pipe)
        self.check_base(backbone.fingerprint(), str(pipe.name_or_path))
        concepts = one_of_each(concepts)
        check_names(concepts, backbone)
        self._store.check_whole()
        check_together(self.standing, eraser, concepts)
        standing = self.standing if eraser.dependence == "weights" else ()
        # The fit sees the weights of earlier removals, without the guidance of those that act during sampling.
        edits = {entry.id: self._load(entry) for entry in standing}
        beneath = {name: weights_of(edit) for name, edit in edits.items() if not isinstance(edit, SamplingEdit)}
        edit = WeightEdit.joint(list(beneath.values())) if beneath else self._unedited()
        history = History(
            # An eraser that reads text states alone keeps the rows of earlier targets: the joint solve leaves them out
            # while those removals stand, and has them again when they are undone.
            targets=tuple(concept for entry in standing for concept in entry.concepts),
            originals={name: p.data for name, p in backbone.parameters(edit.changes.__contains__).items()},
            memory=self.path / "memory",
        )
        context = FitContext(backbone=backbone, history=history, judge=judge, seed=seed, on_progress=on_progress)
        start = time.perf_counter()
        with edit.applied_to(pipe, check=False):
            fitted = eraser.fit(concepts, context)
        seconds = round(time.perf_counter() - start, 3)
        # The fit saw the edited base; the ledger keeps a change on top of its own base.
        return self._add(self._on_base(fitted), started_from=tuple(beneath), seconds=seconds, distinct=distinct)

    def add(self, edit: Edit, *, distinct: bool = False) -> Entry:
        """Add an edit that was fitted on the base itself.

        Raises:
            BaseMismatchError: It was fitted on another model.
            AlreadyRemovedError: A concept stands removed already, and `distinct` is set.
            LedgerError: The folder cannot be changed; the ledger is as it was, as after any other error.
        """
        self.check_base(edit.metadata.base_fingerprint, edit.metadata.base_name)
        return self._add(edit, started_from=(), distinct=distinct)

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
        return tuple(entry for entry in self.standing if isinstance(self._load(entry), SamplingEdit))

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
        return self._on_base(self._joint(entries))

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline, upto: str | None = None) -> Iterator[DiffusionPipeline]:
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
        moves = {}
        for entry in map(self.entry, self.approximate):
            then = [self.entry(name) for name in entry.started_from]
            beneath = (then, [other for other in then if other.state == "standing"])
            sides = (weights_of(self._joint(entries)) if entries else None for entries in beneath)
            moves[entry.id] = relative_move(backbone, weights_of(self._load(entry)), *sides)
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

    def _add(self, edit: Edit, *, started_from: tuple[str, ...], seconds: float | None = None, distinct: bool) -> Entry:
        with self._store.locked():
            if distinct:  # here, because another process may have removed it since the fit began
                check_distinct(self.removed_names, edit.metadata.concepts)
            self._store.check_whole()
            check_addable(self._store, edit)
            number = f"{len(self.entries) + 1:03d}"
            file = f"edits/{number}-{slug(edit.metadata.concepts)}.safetensors"
            entry = Entry(
                id=number,
                time=now(),
                concepts=edit.metadata.concepts,
                method=edit.metadata.method,
                settings=dict(edit.metadata.settings),
                seed=edit.metadata.seed,
                file=file,
                sha256=self._store.save(edit, file),
                solved=isinstance(edit, WeightEdit) and edit.closed_form,
                # A thousand entries that each listed all before them would make the file grow with their square.
                started_from=() if isinstance(edit, WeightEdit) and edit.closed_form else started_from,
                seconds=seconds,
            )
            self._store.write(replace(self._store.record, entries=(*self.entries, entry)))
        return entry

    def _joint(self, entries: Sequence[Entry]) -> Edit:
        return joint([self._load(entry) for entry in entries])

    def _load(self, entry: Entry) -> Edit:
        return self._store.load(entry)

    def _on_base(self, edit: Edit) -> Edit:
        metadata = replace(edit.metadata, base_fingerprint=self.base.fingerprint, base_name=self.base.name)
        return edit.with_metadata(metadata)

    def _unedited(self) -> WeightEdit:
        return WeightEdit(changes={}, metadata=EditMetadata.unedited(self.base.fingerprint, self.base.name))


def slug(concepts: Sequence[Concept]) -> str:
    """Return the targets as a short part of a file name."""
    return text_slug("-".join(concept.target for concept in concepts), 40, "concept")
