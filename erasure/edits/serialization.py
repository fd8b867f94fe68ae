"""Edits as safetensors files: tensors, and a header whose JSON names them. Nothing in a file is executed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from ..backbones.conditioning import TEXT
from ..closed_form.problem import Rows, TextMap
from ..closed_form.storage import packed, unpacked, unpacked_first
from ..errors import InputError, reason
from ..io.files import write_whole
from .changes import Change, DenseChange, LowRankChange, MapChange, SolvedChange, SumChange
from .tokens import NewToken

Kind = TypeVar("Kind")
_DAMAGED = "The file is damaged: copy or save it again."
_SHOWN = 80  # characters of a value in an error


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
            InputError: There is no such file, it is not a safetensors file, or its header is damaged.
        """
        if not path.is_file():
            raise InputError(f"edit: expected the path of a file, got {str(path)!r}. Check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"edit: expected a safetensors file, got {str(path)!r} ({reason(error)}). Save it again."
            ) from error
        name = str(header.get("format"))
        return cls(format=name, description=_description(header.get("edit")), tensors=tensors)


def member(data: object, name: str, kind: type[Kind]) -> Kind:
    """Return a member of a JSON object, which must be of a type.

    Raises:
        InputError: It is no object, or has no such member, or one of another type.
    """
    value = data
    if isinstance(data, Mapping):
        members = cast("Mapping[str, object]", data)
        value = members.get(name, "nothing")
        if name in members and isinstance(value, kind):
            return value
    got = repr(value)[:_SHOWN]
    typed = "" if kind is object else f" of the type {kind.__name__}"
    raise InputError(f"edit: expected a header with {name!r}{typed}, got {got}. {_DAMAGED}")


def object_member(data: object, name: str) -> dict[str, Any]:
    """Return a member that is an object itself; see `member`."""
    return cast("dict[str, Any]", member(data, name, dict))


def list_member(data: object, name: str) -> list[Any]:
    """Return a member that is a list; see `member`."""
    return cast("list[Any]", member(data, name, list))


def _description(text: str | None) -> Mapping[str, Any]:
    """Return the JSON object of a header; the text of a file of other code is none, and its format says so."""
    try:
        description = json.loads(text or "{}")
    except (ValueError, RecursionError):
        description = None
    return cast("dict[str, Any]", description) if isinstance(description, dict) else {}


class ChangeWriter:
    """Writer of changes and new tokens as JSON values that name tensors; a shared tensor is stored once.

    Attributes:
        tensors: The tensors by name.
        by_columns: Names of the matrices that lie column by column in memory, which a file cannot hold: it has them
            row by row, and reading restores their layout.
    """

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.by_columns: list[str] = []
        self._rows = rows
        self._keys: dict[int, str] = {}

    def changes(self, changes: Mapping[str, Change]) -> dict[str, Any]:
        """Return the description of changes by parameter name, in the order of the names, which readers get."""
        return {name: self._described(change, name) for name, change in sorted(changes.items())}

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
            case SolvedChange() if change.rows is self._rows.get(change.space):
                size = change.norm if change.size is None else change.size
                return {"kind": "solved", "size": size, **_named(change.space)}
            case SolvedChange():
                return self._described(change.as_map, name)
            case MapChange():
                v = None if change.map.v is None else self._key_of(change.map.v, f"{name}.v")
                return {"kind": "map", "u": self._key_of(change.map.u, f"{name}.u"), "v": v, **_named(change.space)}
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
    """Reader of the values of a `ChangeWriter`; changes that shared a tensor share it again."""

    def __init__(self, tensors: Mapping[str, Tensor], rows: Mapping[str, Rows], by_columns: Sequence[str] = ()) -> None:
        self._tensors = {**tensors, **{name: stored_tensor(tensors, name, 2).T.contiguous().T for name in by_columns}}
        self._rows = rows
        self._maps: dict[str, MapChange] = {}
        self._solved: dict[tuple[str, float], SolvedChange] = {}

    def change(self, data: Mapping[str, Any]) -> Change:
        """Return the change of a description.

        Raises:
            InputError: It is damaged, or a later version of this library wrote it.
        """
        match member(data, "kind", str):
            case "dense":
                return DenseChange(delta=self._of(data, "delta"))
            case "low-rank":
                up, down = self._of(data, "up", 2), self._of(data, "down", 2)
                if up.shape[1] != len(down):
                    raise InputError(
                        f"edit: expected factors of one rank, got {tuple(up.shape)} and {tuple(down.shape)}. {_DAMAGED}"
                    )
                return LowRankChange(up=up, down=down)
            case "map":
                if member(data, "u", str) not in self._maps:
                    self._maps[data["u"]] = MapChange(map=self._map(data), space=_space(data))
                return self._maps[data["u"]]
            case "solved":
                rows = self._rows.get(_space(data))
                if rows is None:
                    raise InputError(f"edit: expected the rows that a change solves, got none. {_DAMAGED}")
                size = member(data, "size", float)
                return self._solved.setdefault((rows.space, size), SolvedChange(rows=rows, size=size))
            case "sum" if list_member(data, "parts"):
                return SumChange(parts=tuple(map(self.change, data["parts"])))
            case kind:
                raise InputError(f"edit: expected a known kind of change, got {kind!r}. Update this library.")

    def _map(self, data: Mapping[str, Any]) -> TextMap:
        u = self._of(data, "u", 2).double()
        v = None if "v" in data and data["v"] is None else self._of(data, "v", 2).double()
        if (v is None and u.shape[0] != u.shape[1]) or (v is not None and u.shape != v.shape):
            others = () if v is None else tuple(v.shape)
            raise InputError(f"edit: expected a square map, got {tuple(u.shape)} and {others}. {_DAMAGED}")
        return TextMap(u=u, v=v)

    def new_tokens(self, data: Sequence[Mapping[str, Any]]) -> tuple[NewToken, ...]:
        """Return the new tokens of a description.

        Raises:
            InputError: It is damaged.
        """
        return tuple(
            NewToken(
                text=member(token, "text", str),
                rows={part: stored_tensor(self._tensors, key, 1) for part, key in object_member(token, "rows").items()},
            )
            for token in data
        )

    def _of(self, data: Mapping[str, Any], name: str, axes: int | None = None) -> Tensor:
        """Return the tensor that a description names."""
        return stored_tensor(self._tensors, member(data, name, str), axes)


def stored_tensor(tensors: Mapping[str, Tensor], key: object, axes: int | None = None) -> Tensor:
    """Return a tensor of numbers by its name; a number of axes of None is any.

    Raises:
        InputError: There is none of that name, or it is of another kind.
    """
    tensor = tensors.get(key) if isinstance(key, str) else None
    if tensor is None or not tensor.is_floating_point() or axes not in (None, tensor.ndim):
        got = "none" if tensor is None else f"one of {tensor.dtype} with {tensor.ndim} axes"
        axes_text = "" if axes is None else f" with {axes} axes"
        raise InputError(f"edit: expected a tensor {key!r} of real numbers{axes_text}, got {got}. {_DAMAGED}")
    return tensor


def _named(space: str) -> dict[str, str]:
    """Return the part of a description that names a text stream; that of the tokens' states needs no name."""
    return {} if space == TEXT else {"space": space}


def _space(data: Mapping[str, Any]) -> str:
    return member(data, "space", str) if "space" in data else TEXT


def rows_as_tensors(rows: Mapping[str, Rows] | None) -> dict[str, Tensor]:
    """Return the rows of an edit as tensors by name; none without rows."""
    return {name: tensor for each in (rows or {}).values() for name, tensor in packed(each).items()}


def rows_from(description: object, tensors: Mapping[str, Tensor]) -> dict[str, Rows] | None:
    """Return the rows of an edit by their text stream, if it has any; a file of the first format describes them.

    Raises:
        InputError: The description is damaged.
    """
    match description:
        case None | False:
            return None
        case True:
            return {TEXT: unpacked(tensors)}
        case Mapping():
            columns = cast("Mapping[str, Any]", description)
            return {TEXT: unpacked_first(columns, tensors)} if columns else None
        case list() if description and all(isinstance(space, str) for space in cast("list[object]", description)):
            return {space: unpacked(tensors, space) for space in cast("list[str]", description)}
        case _:
            pass
    raise InputError(f"edit: expected the rows of an edit, or none, got {description!r}. {_DAMAGED}")
