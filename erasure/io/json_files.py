"""JSON files of records, read by their shape: a damaged one is an error of one line, or counts as missing."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import InputError


def read_record(path: Path, shape: type, what: str) -> dict[str, Any]:
    """Return the record of a JSON file.

    Args:
        path: The file.
        shape: TypedDict of the keys that are used; others may be there.
        what: Name of the record for errors: "a run's record".

    Raises:
        InputError: The file cannot be read or does not hold such a record.
    """
    try:
        content = path.read_bytes()
        # As a dict, too: the shape names some keys of several.
        record = TypeAdapter(dict[str, Any]).validate_json(content)
        TypeAdapter(shape).validate_json(content)
    except OSError as error:
        raise InputError(f"{path}: expected {what}, got {error.strerror!r}. Check the path.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path}: expected {what}, got {first['msg']!r} at {where}. Restore it from a copy, or delete it."
        ) from None
    return record


def json_digest(value: object) -> str:
    """Return the SHA-256 of a value as JSON, 64 hexadecimal digits; the order of keys does not count.

    What JSON does not know counts by its `str`.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def record_if_whole(path: Path, shape: type) -> dict[str, Any] | None:
    """Return the record of a JSON file, None if it is missing or damaged; see `read_record`."""
    try:
        return read_record(path, shape, "a record")
    except InputError:
        return None
