"""The record of removals on one base model: add, undo any of them, replay, verify.

A ledger is a folder: `ledger.json` lists the removals in order, `edits/` holds one safetensors file each, `rows/` the
text states that several of them have in common, `memory/` what continual methods make once and use for every removal;
it may be deleted and is then made again. A removal is there once `ledger.json` names it, and that file is only ever
replaced whole, so a process that is killed at any moment leaves the last complete state.

What stands is computed from the original weights, never by subtracting: closed-form removals by one joint solve, which
makes their order irrelevant and undoing one exact, then the changes of trained removals, in order. A trained removal
was fitted on top of those before it, so undoing one beneath it is an approximation and is labelled so.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..backbones import backbone_of
from ..backbones.base import Backbone
from ..closed_form.problem import Rows, solve
from ..concept import Concept, normalized
from ..edits.edit import Edit, EditMetadata, MapChange, SolvedChange
from ..erasers import Eraser, History, Shows
from ..errors import BaseMismatchError, ErasureError, InputError, LedgerError, unknown_name
from ..io.files import write_whole
from ..progress import OnProgress

_FORMAT = "erasure-ledger/1"
_LOCK_SECONDS = 30.0
_REPLAY_TOLERANCE = 1e-6  # relative; the solve is in float64, where another machine's rounding stays far below it


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that a ledger is about.

    Attributes:
        name: What loads it: "tinyworld", a folder, a Hub id.
        fingerprint: Of its weights.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The ledger that a replayed one was made after.

    Attributes:
        base: The model that it was about.
        state: Its name for what stood.
        entries: The removals that were made again, in order, by their ids there.
    """

    base: Base
    state: str
    entries: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One removal.

    Attributes:
        id: "001", "002", ... in the order they were made; never used twice.
        time: When, in ISO 8601, UTC.
        concepts: What was removed.
        method: The eraser's name.
        settings: The eraser's settings.
        seed: Of the fit.
        file: The edit, relative to the ledger's folder.
        sha256: Of that file.
        solved: Whether all of it is closed-form and solved for with the others; what is trained in whole or in part is
            not.
        started_from: The removals that stood when it was fitted; none for a solved one, which does not depend on them.
        state: Whether it stands or was undone.
        undone: When it was undone.
        seconds: Of the fit; None for an edit that was fitted elsewhere.
    """

    id: str
    time: str
    concepts: tuple[Concept, ...]
    method: str
    settings: dict[str, Any]
    seed: int
    file: str
    sha256: str
    solved: bool
    started_from: tuple[str, ...] = ()
    state: Literal["standing", "undone"] = "standing"
    undone: str | None = None
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Give the fields as plain data."""
        return {**asdict(self), "concepts": [concept.as_json() for concept in self.concepts]}

    @cached_property
    def line(self) -> str:
        """What `ledger.json` says of it; kept, so that an addition costs the same whatever stands before it."""
        return json.dumps(self.as_json(), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What `ledger.json` holds."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    format: Literal["erasure-ledger/1"]
    base: Base
    entries: tuple[Entry, ...]
    origin: Origin | None = None

    def content(self) -> bytes:
        """Return the file's bytes: JSON with a line an entry, for people and for the tools that compare lines."""
        facts = {"format": self.format, "base": asdict(self.base)}
        if self.origin is not None:
            facts["origin"] = asdict(self.origin)
        head = json.dumps(facts, ensure_ascii=False)
        lines = ",".join(f"\n{entry.line}" for entry in self.entries)
        return f'{head[:-1]}, "entries": [{lines}\n]}}\n'.encode()


class Ledger:
    """An open ledger. It holds the record as last read or written; writing looks at the file first, under a lock."""

    def __init__(self, path: Path, record: _Record, content: bytes = b"") -> None:
        self.path = path
        self._record = record
        self._content = content  # what the record was read from or written as

    @classmethod
    def create(
        cls, path: str | Path, base_fingerprint: str, base_name: str, *, origin: Origin | None = None
    ) -> "Ledger":
        """Start an empty ledger in a folder, which is made if needed.

        Args:
            path: The folder.
            base_fingerprint: Of the base model.
            base_name: What loads it.
            origin: The ledger whose removals it is to have again; None for one of its own.

        Raises:
            LedgerError: There is a ledger already, or the folder cannot be made.
            InputError: Its record cannot be written.
        """
        path = Path(path)
        if (path / "ledger.json").exists():
            raise LedgerError(f"ledger: expected a new folder, got {str(path)!r}, which holds a ledger. Open that one.")
        base = Base(name=base_name, fingerprint=base_fingerprint)
        record = _Record(format=_FORMAT, base=base, entries=(), origin=origin)
        ledger = cls(path, record)
        with _written_in(path):
            (path / "edits").mkdir(parents=True, exist_ok=True)
            ledger._write(record)
        return ledger

    @classmethod
    def open(cls, path: str | Path) -> "Ledger":
        """Open the ledger of a folder.

        Raises:
            LedgerError: There is none, or its record is damaged.
        """
        content = _read(Path(path))
        return cls(Path(path), _parsed(content, Path(path)), content)

    @classmethod
    def open_or_create(cls, path: str | Path, pipe: Any, name: str) -> "Ledger":
        """Open the folder's ledger, or start one for the pipeline.

        Args:
            path: The folder.
            pipe: The unedited base model.
            name: What loads it.

        Raises:
            BaseMismatchError: The ledger is of another base.
            LedgerError: See `open` and `create`.
        """
        fingerprint = backbone_of(pipe).fingerprint()
        if not (Path(path) / "ledger.json").exists():
            return cls.create(path, fingerprint, name)
        ledger = cls.open(path)
        ledger.check_base(fingerprint, name)
        return ledger

    @property
    def base(self) -> Base:
        """The model that the ledger is about."""
        return self._record.base

    @property
    def origin(self) -> Origin | None:
        """The ledger that this one was replayed from; None for one of its own."""
        return self._record.origin

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every removal ever made, in order."""
        return self._record.entries

    @property
    def standing(self) -> tuple[Entry, ...]:
        """The removals that were not undone, in order."""
        return tuple(entry for entry in self.entries if entry.state == "standing")

    @property
    def approximate(self) -> tuple[str, ...]:
        """Ids of standing trained removals that were fitted on top of one that no longer stands."""
        stands = {entry.id for entry in self.standing}
        return tuple(e.id for e in self.standing if not e.solved and not stands.issuperset(e.started_from))

    def entry(self, name: str) -> Entry:
        """Return the removal of an id; "1" is "001".

        Raises:
            UnknownNameError: There is none.
        """
        for entry in self.entries:
            if entry.id == name.zfill(3):
                return entry
        raise unknown_name("ledger entry", name, [entry.id for entry in self.entries])

    def check_base(self, fingerprint: str, name: str = "") -> None:
        """Raise BaseMismatchError if a model is not the one that the ledger is about."""
        if fingerprint != self.base.fingerprint:
            raise BaseMismatchError(
                f"ledger {str(self.path)!r}: expected its base {self.base.name!r} ({self.base.fingerprint[:12]}),"
                f" got {name or 'a model'!r} ({fingerprint[:12]}). Load that base, or start another ledger."
            )

    def remove(
        self,
        pipe: Any,
        eraser: Eraser,
        concepts: Sequence[Concept],
        *,
        on_progress: OnProgress | None = None,
        seed: int = 0,
        shows: Shows | None = None,
    ) -> Entry:
        """Fit a removal on top of what stands, and add it; the pipeline is left as it was.

        Args:
            pipe: The unedited base model.
            eraser: The method.
            concepts: What to remove, as one entry.
            on_progress: Receives the progress of the fit.
            seed: Of the fit.
            shows: Tells which pictures show a concept, for methods that look; None where nothing can tell.

        Raises:
            BaseMismatchError: The pipeline is not the ledger's base.
            InputError: The method cannot remove these concepts.
            LedgerError: The folder cannot be changed; the ledger is as it was, as after any other error.
        """
        backbone = backbone_of(pipe)
        self.check_base(backbone.fingerprint(), str(pipe.name_or_path))
        standing = self.standing
        edit = self.edit() if eraser.reads_weights else self._unedited()
        originals = {name: p.data for name, p in backbone.parameters(edit.changes.__contains__).items()}
        history = History(
            # What reads text states alone keeps its rows of what was removed: the joint solve leaves them out while
            # that stands, and has them again when it is undone.
            targets=tuple(c for entry in standing for c in entry.concepts) if eraser.reads_weights else (),
            originals=originals,
            memory=self.path / "memory",
            shows=shows,
        )
        start = time.perf_counter()
        with edit.applied_to(pipe, check=False):
            fitted = eraser.fit(backbone, concepts, history=history, on_progress=on_progress, seed=seed)
        seconds = round(time.perf_counter() - start, 3)
        # What the fit saw was the edited base; what the ledger keeps is a change on top of its own base.
        return self._add(self._on_base(fitted), started_from=tuple(entry.id for entry in standing), seconds=seconds)

    def add(self, edit: Edit) -> Entry:
        """Add an edit that was fitted on the base itself.

        Raises:
            BaseMismatchError: It was fitted on something else.
            LedgerError: The folder cannot be changed; the ledger is as it was, as after any other error.
        """
        self.check_base(edit.metadata.base_fingerprint, edit.metadata.base_name)
        return self._add(edit, started_from=())

    def undo(self, name: str) -> Entry:
        """Take a removal back, whichever it is; its file stays, and so does its line in the log.

        Raises:
            UnknownNameError: There is no such removal.
            LedgerError: It was undone already, or the folder cannot be changed.
        """
        with self._locked():
            entry = self.entry(name)
            if entry.state == "undone":
                raise LedgerError(
                    f"ledger entry {entry.id}: expected one that stands, got one undone at {entry.undone}."
                )
            undone = replace(entry, state="undone", undone=_now())
            entries = tuple(undone if other.id == entry.id else other for other in self.entries)
            self._write(replace(self._record, entries=entries))
        return undone

    def edit(self, upto: str | None = None) -> Edit:
        """Return what stands as one edit on the base.

        Args:
            upto: Ignore the removals after this one; None takes all.

        Raises:
            UnknownNameError: There is no removal `upto`.
            LedgerError: A file is missing or is not the one that was added.
        """
        last = None if upto is None else self.entry(upto).id
        entries = [entry for entry in self.standing if last is None or entry.id <= last]
        if not entries:
            return self._unedited()
        return self._on_base(Edit.joint([self._load(entry) for entry in entries]))

    @contextmanager
    def applied_to(self, pipe: Any, upto: str | None = None) -> Iterator[Any]:
        """Apply what stands for the length of a `with`; on exit the weights are what they were, bit for bit.

        Raises:
            BaseMismatchError: The pipeline is not the ledger's base.
            LedgerError: See `edit`.
        """
        with self.edit(upto).applied_to(pipe):
            yield pipe

    def state(self, upto: str | None = None) -> str:
        """Return a name for what stands that is the same for the same files on the same base, and for no other."""
        last = None if upto is None else self.entry(upto).id
        parts = [entry.sha256 for entry in self.standing if last is None or entry.id <= last]
        return hashlib.sha256("\n".join([self.base.fingerprint, *parts]).encode()).hexdigest()[:16]

    def moved(self, pipe: Any) -> dict[str, float]:
        """Return how far the weights beneath each approximate removal have moved since it was fitted.

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
        return {name: self._moved(backbone, self.entry(name)) for name in self.approximate}

    def _moved(self, backbone: Backbone, entry: Entry) -> float:
        own = self._load(entry)
        beneath = [self.entry(name) for name in entry.started_from]
        then, now = (
            Edit.joint([self._load(other) for other in others]).changes if others else {}
            for others in (beneath, [other for other in beneath if other.state == "standing"])
        )
        moves = changes = 0.0
        for name, weight in backbone.parameters(own.changes.__contains__).items():
            original = weight.detach()
            start, end = (side[name].of(original).double() if name in side else 0.0 for side in (then, now))
            moves += float(torch.as_tensor(start - end).square().sum())
            changes += float(own.changes[name].of(original).double().square().sum())
        return (moves / changes) ** 0.5 if changes else 0.0

    def verify(self, pipe: Any | None = None) -> list[str]:
        """Return what is wrong, a line each: files by hash, solved removals by solving them again, the base.

        Args:
            pipe: The unedited base model, to compare its fingerprint; None leaves that out.
        """
        problems = [problem for entry in self.entries for problem in self._problems(entry)]
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

    def _problems(self, entry: Entry) -> list[str]:
        try:
            edit = self._load(entry)
        except ErasureError as error:
            return [str(error)]
        problems = []
        if edit.metadata.base_fingerprint != self.base.fingerprint:
            problems.append(f"{entry.file}: was made for another base ({edit.metadata.base_fingerprint[:12]}).")
        if edit.closed_form != entry.solved or edit.metadata.concepts != entry.concepts:
            problems.append(f"{entry.file}: its header and ledger.json disagree.")
        error = _replay_error(edit)
        if error > _REPLAY_TOLERANCE:
            problems.append(f"{entry.file}: solving it again gives another edit (relative difference {error:.1e}).")
        return problems

    def _load(self, entry: Entry) -> Edit:
        """Read an entry's edit, if its file is the one that was added."""
        path = self.path / entry.file
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise LedgerError(f"{path}: expected the edit of entry {entry.id}, got {error.strerror!r}.") from None
        if found != entry.sha256:
            raise LedgerError(
                f"{path}: expected the file with sha256 {entry.sha256[:12]}, got {found[:12]}. It was changed."
            )
        try:
            return Edit.load(path, shared=self.path / "rows")
        except InputError as error:
            raise LedgerError(f"ledger entry {entry.id}: {error}") from None

    def _add(self, edit: Edit, *, started_from: tuple[str, ...], seconds: float | None = None) -> Entry:
        with self._locked():
            if edit.rows is not None:
                self._check_solvable(edit)
            self._sweep()
            number = f"{len(self.entries) + 1:03d}"
            file = f"edits/{number}-{slug(edit.metadata.concepts)}.safetensors"
            entry = Entry(
                id=number,
                time=_now(),
                concepts=edit.metadata.concepts,
                method=edit.metadata.method,
                settings=json.loads(json.dumps(dict(edit.metadata.settings))),
                seed=edit.metadata.seed,
                file=file,
                sha256=hashlib.sha256(edit.save(self.path / file, shared=self.path / "rows").read_bytes()).hexdigest(),
                solved=edit.closed_form,
                # A thousand entries that each listed all before them would make the file grow with their square.
                started_from=() if edit.closed_form else started_from,
                seconds=seconds,
            )
            self._write(replace(self._record, entries=(*self.entries, entry)))
        return entry

    def _sweep(self) -> None:
        """Delete what an addition left that was killed before `ledger.json` named it."""
        named = {entry.file for entry in self.entries}
        for name in os.listdir(self.path / "edits"):  # names alone: there is one for every removal
            if name.endswith((".safetensors", ".tmp")) and f"edits/{name}" not in named:
                (self.path / "edits" / name).unlink()
        # Rows that such an addition had written already are kept: they are right, and likely the next one's.
        for name in os.listdir(self.path / "rows") if (self.path / "rows").is_dir() else ():
            if name.endswith(".tmp"):
                (self.path / "rows" / name).unlink()

    def _check_solvable(self, edit: Edit) -> None:
        """Refuse a removal that closes a circle of anchors, which the joint solve has no place for."""
        added = edit.metadata.concepts
        anchors = {normalized(concept.anchor) for concept in added} - {""}  # the unconditional prompt is never erased
        if not anchors:
            return
        becomes: dict[str, set[str]] = {}
        for concept in (*(concept for entry in self.standing for concept in entry.concepts), *added):
            for name in concept.names:
                becomes.setdefault(normalized(name), set()).add(normalized(concept.anchor))
        # Only such a removal is solved for already now; to solve at every addition would make a thousand of them slow.
        if not _reached(anchors, becomes).isdisjoint(normalized(name) for concept in added for name in concept.names):
            Edit.joint([*(self._load(entry) for entry in self.standing), edit])

    def _on_base(self, edit: Edit) -> Edit:
        metadata = replace(edit.metadata, base_fingerprint=self.base.fingerprint, base_name=self.base.name)
        return replace(edit, metadata=metadata)

    def _unedited(self) -> Edit:
        metadata = EditMetadata(
            method="none",
            settings={},
            concepts=(),
            seed=0,
            base_fingerprint=self.base.fingerprint,
            base_name=self.base.name,
            versions={},
            time=_now(),
        )
        return Edit(changes={}, metadata=metadata)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock, with the record as it is on the disk now."""
        with _written_in(self.path):
            lock = FileLock(self.path / ".lock", timeout=_LOCK_SECONDS)
            try:
                lock.acquire()
            except Timeout:
                raise LedgerError(
                    f"ledger {str(self.path)!r}: expected it to be free, got one that another process"
                    f" has held for {_LOCK_SECONDS:.0f} s. Try again when that is done."
                ) from None
            try:
                self._refresh()
                yield
            finally:
                lock.release()

    def _refresh(self) -> None:
        """Take over what another process wrote.

        The bytes are compared, which takes a fraction of a millisecond where to parse them takes tens, and which no
        clock or reused inode can mislead.
        """
        content = _read(self.path)
        if content != self._content:
            self._record, self._content = _parsed(content, self.path), content

    def _write(self, record: _Record) -> None:
        content = record.content()
        write_whole(self.path / "ledger.json", content)
        self._record, self._content = record, content


def _read(path: Path) -> bytes:
    file = path / "ledger.json"
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise LedgerError(f"ledger: expected a folder with a ledger.json, got {str(path)!r}. Check the path.") from None
    except OSError as error:
        raise LedgerError(f"{file}: expected a file to read, got {error.strerror!r}. Check its permissions.") from None


def _parsed(content: bytes, path: Path) -> _Record:
    file = path / "ledger.json"
    try:
        record = TypeAdapter(_Record).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise LedgerError(f"{file}: expected a ledger of format {_FORMAT}, got {first['msg']!r} at {where}.") from None
    for number, entry in enumerate(record.entries, 1):
        if entry.id != f"{number:03d}" or not re.fullmatch(r"edits/[\w.-]+\.safetensors", entry.file):
            raise LedgerError(
                f"{file}: expected entries in order with files in edits/, got {entry.id!r}, {entry.file!r}."
            )
    return record


def _reached(names: Iterable[str], becomes: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the names, what they become, what that becomes, and so on."""
    reached, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(becomes.get(name, ()))
    return reached


def _replay_error(edit: Edit) -> float:
    """Return how far the solve of an edit's rows is from what the edit says of it, relative to that; 0 if trained.

    An edit that holds a map says |M - I|_F to every entry, any other its size alone.
    """
    changes = {id(change): change for change in edit.changes.values()}.values()
    worst = 0.0
    for change in changes:
        if isinstance(change, SolvedChange) and change.size is not None:
            worst = max(worst, _relative(abs(change.norm - change.size), change.size))
        elif isinstance(change, MapChange) and edit.rows is not None:
            stored, again = (each.minus_identity() for each in (change.map, solve(Rows.joined([edit.rows]))))
            worst = max(worst, _relative(float((stored - again).norm()), float(stored.norm())))
    return worst


def _relative(difference: float, size: float) -> float:
    return difference / size if size > 0 else difference


@contextmanager
def _written_in(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one clear line."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"ledger {str(path)!r}: expected a folder that can be written, got {error.strerror or str(error)!r}."
            " Nothing was added or undone."
        ) from error


def slug(concepts: Sequence[Concept]) -> str:
    """Return the targets as a short part of a file name."""
    words = "-".join(concept.target for concept in concepts)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40] or "concept"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
