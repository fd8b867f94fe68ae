"""Edits as safetensors files: tensors, and a header whose JSON names them. Nothing in a file is executed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from ..closed_form.problem import Rows, TextMap
from ..closed_form.storage import packed, unpacked, unpacked_first
from ..errors import InputError
from ..io.files import write_whole
from .changes import Change, DenseChange, LowRankChange, MapChange, SolvedChange, SumChange
from .tokens import NewToken


@dataclass(frozen=True, kw_only=True, eq=False)
class EditFile:
    """The contents of the file of an edit.

    Attributes:
        format: Name and version of the format: "erasure-edit/2".
        description: JSON value that names the tensors and holds everything else.
        tensors: Tensors by name.
    """

    format: str
    description: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: The path cannot be written.
        """
        header = {"format": self.format, "edit": json.dumps(self.description, sort_keys=True)}
        write_whole(path, serialized(dict(self.tensors), metadata=header))

    @classmethod
    def read(cls, path: Path) -> "EditFile":
        """Return the contents of a file that `write` wrote.

        Raises:
            InputError: There is no such file, or it is not a safetensors file.
        """
        if not path.is_file():
            raise InputError(f"edit: expected the path of a file, got {str(path)!r}. Check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise InputError(
                f"edit: expected a safetensors file, got {str(path)!r} ({error}). Save it again."
            ) from error
        return cls(format=str(header.get("format")), description=json.loads(header.get("edit", "{}")), tensors=tensors)


class ChangeWriter:
    """Turns changes and new tokens into JSON values that name tensors; a shared tensor is stored once.

    Attributes:
        tensors: The tensors by name.
        by_columns: Names of the matrices that lie column by column in memory, which a file cannot hold: it has them
            row by row, and reading restores their layout.
    """

    def __init__(self, rows: Rows | None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.by_columns: list[str] = []
        self._rows = rows
        self._keys: dict[int, str] = {}

    def changes(self, changes: Mapping[str, Change]) -> dict[str, Any]:
        """Return the description of changes by parameter name."""
        return {name: self._described(change, name) for name, change in changes.items()}

    def new_tokens(self, tokens: Sequence[NewToken]) -> list[dict[str, Any]]:
        """Return the description of new tokens."""
        return [
            {
                "text": token.text,
                "rows": {part: self._key_of(row, f"tokens.{i}.{part}") for part, row in token.rows.items()},
            }
            for i, token in enumerate(tokens)
        ]

    def _described(self, change: Change, name: str) -> dict[str, Any]:
        match change:
            case DenseChange():
                return {"kind": "dense", "delta": self._key_of(change.delta, f"{name}.delta")}
            case LowRankChange():
                factors = {key: self._key_of(getattr(change, key), f"{name}.{key}") for key in ("up", "down")}
                return {"kind": "low-rank", **factors}
            case SolvedChange() if change.rows is self._rows:
                return {"kind": "solved", "size": change.norm if change.size is None else change.size}
            case SolvedChange():
                return self._described(change.as_map, name)
            case MapChange():
                v = None if change.map.v is None else self._key_of(change.map.v, f"{name}.v")
                return {"kind": "map", "u": self._key_of(change.map.u, f"{name}.u"), "v": v}
            case SumChange():
                parts = [self._described(part, f"{name}.{i}") for i, part in enumerate(change.parts)]
                return {"kind": "sum", "parts": parts}

    def _key_of(self, tensor: Tensor, name: str) -> str:
        if id(tensor) not in self._keys:
            self._keys[id(tensor)] = name
            if not tensor.is_contiguous() and tensor.ndim == 2 and tensor.T.is_contiguous():
                self.by_columns.append(name)
            self.tensors[name] = tensor.detach().cpu().contiguous()
        return self._keys[id(tensor)]


class ChangeReader:
    """Reads back the values of a `ChangeWriter`; changes that shared a tensor share it again."""

    def __init__(self, tensors: Mapping[str, Tensor], rows: Rows | None, by_columns: Sequence[str] = ()) -> None:
        self._tensors = {**tensors, **{name: tensors[name].T.contiguous().T for name in by_columns}}
        self._rows = rows
        self._maps: dict[str, MapChange] = {}
        self._solved: dict[float, SolvedChange] = {}

    def change(self, data: Mapping[str, Any]) -> Change:
        """Return the change of a description.

        Raises:
            InputError: A later version of this library wrote it.
        """
        tensors = self._tensors
        match data["kind"]:
            case "dense":
                return DenseChange(delta=tensors[data["delta"]])
            case "low-rank":
                return LowRankChange(up=tensors[data["up"]], down=tensors[data["down"]])
            case "map":
                if data["u"] not in self._maps:
                    v = None if data["v"] is None else tensors[data["v"]]
                    self._maps[data["u"]] = MapChange(map=TextMap(u=tensors[data["u"]], v=v))
                return self._maps[data["u"]]
            case "solved" if self._rows is not None:
                change = SolvedChange(rows=self._rows, size=data["size"])
                return self._solved.setdefault(data["size"], change)
            case "sum":
                return SumChange(parts=tuple(map(self.change, data["parts"])))
            case kind:
                raise InputError(f"edit: expected a known kind of change, got {kind!r}. Update this library.")

    def new_tokens(self, data: Sequence[Mapping[str, Any]]) -> tuple[NewToken, ...]:
        """Return the new tokens of a description."""
        return tuple(
            NewToken(text=token["text"], rows={part: self._tensors[key] for part, key in token["rows"].items()})
            for token in data
        )


def rows_as_tensors(rows: Rows | None) -> dict[str, Tensor]:
    """Return the rows of an edit as tensors by name; none without rows."""
    return {} if rows is None else packed(rows)


def rows_from(description: Mapping[str, Any] | bool | None, tensors: Mapping[str, Tensor]) -> Rows | None:
    """Return the rows of an edit, if it has any; a file of the first format describes them."""
    if not description:
        return None
    return unpacked(tensors) if description is True else unpacked_first(description, tensors)
