"""The record of a ledger, `ledger.json`: base model, origin, and one line for each removal."""

import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..arguments import checks_arguments
from ..concept import Concept
from ..errors import LedgerError

FORMAT = "erasure-ledger/1"
FILE = "ledger.json"


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base model of a ledger.

    Attributes:
        name: Argument of `load_model`: "tinyworld", a folder, a Hub id.
        fingerprint: Fingerprint of its weights.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The ledger whose removals were made again on another model; see `replay`.

    Attributes:
        base: Its base model.
        state: Its state.
        entries: Ids there of the removals that were made again, in order.
    """

    base: Base
    state: str
    entries: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One removal.

    Attributes:
        id: "001", "002", ... in the order of removal; never used twice.
        time: Time of the removal, ISO 8601, UTC.
        concepts: Removed concepts.
        method: Name of the eraser.
        settings: Settings of the eraser.
        seed: Seed of the fit.
        file: File of the edit, relative to the ledger's folder.
        sha256: Hash of that file.
        solved: Whether the whole edit is closed-form and solved together with the others; False for an edit that is
            trained in whole or in part, or acts during sampling.
        started_from: Standing removals that the edit depends on, because it was fitted on their weights; empty for an
            edit that depends on the text alone.
        state: "standing" or "undone".
        undone: Time of the undoing; None while it stands.
        seconds: Duration of the fit in seconds; None for an edit that was fitted elsewhere.
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

    @property
    def shown_method(self) -> str:
        """The name of the eraser; of a stack those of its parts: "hirm+speed"."""
        parts = self.settings.get("parts")
        if not isinstance(parts, list | tuple):
            return self.method
        return "+".join(part["name"] for part in cast("list[dict[str, str]]", parts))

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "concepts": [concept.as_json() for concept in self.concepts]}

    @cached_property
    def line(self) -> str:
        """The entry's line in `ledger.json`; cached, so that the cost of an addition does not grow with the ledger."""
        return json.dumps(self.as_json(), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The contents of `ledger.json`.

    Attributes:
        format: Name and version of the format.
        base: Base model.
        entries: All removals, in order.
        origin: Ledger that this one was replayed from; None without one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    format: Literal["erasure-ledger/1"]
    base: Base
    entries: tuple[Entry, ...]
    origin: Origin | None = None

    def content(self) -> bytes:
        """Return the bytes of the file: JSON with one line an entry, for people and for line-based tools."""
        facts = {"format": self.format, "base": asdict(self.base)}
        if self.origin is not None:
            facts["origin"] = asdict(self.origin)
        head = json.dumps(facts, ensure_ascii=False)
        lines = ",".join(f"\n{entry.line}" for entry in self.entries)
        return f'{head[:-1]}, "entries": [{lines}\n]}}\n'.encode()


@checks_arguments
def is_ledger(folder: str | Path) -> bool:
    """Return True for the folder of a ledger, whole or damaged."""
    return (Path(folder) / FILE).exists()


def read_record(folder: Path) -> bytes:
    """Return the bytes of a ledger's record.

    Raises:
        LedgerError: The folder holds no ledger, or the file cannot be read.
    """
    file = folder / FILE
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise LedgerError(
            f"ledger: expected a folder with a ledger.json, got {str(folder)!r}. Check the path."
        ) from None
    except OSError as error:
        raise LedgerError(f"{file}: expected a file to read, got {error.strerror!r}. Check its permissions.") from None


def parsed(content: bytes, folder: Path) -> Record:
    """Return the record that the bytes hold.

    Raises:
        LedgerError: The bytes are damaged.
    """
    file = folder / FILE
    try:
        record = TypeAdapter(Record).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise LedgerError(
            f"{file}: expected a ledger of format {FORMAT}, got {first['msg']!r} at {where}. Restore it from a copy."
        ) from None
    for number, entry in enumerate(record.entries, 1):
        if entry.id != f"{number:03d}" or not re.fullmatch(r"edits/[\w.-]+\.safetensors", entry.file):
            raise LedgerError(
                f"{file}: expected entries in order with files in edits/, got {entry.id!r}, {entry.file!r}."
                " Restore it from a copy."
            )
    return record
