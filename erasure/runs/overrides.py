"""Settings by path: `--set eraser.reg=0.5`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from ..errors import InputError
from ..io.text import one_line, shortened
from ..io.yaml_text import plain_yaml
from ..registry import AnySettings, with_settings


def override(config: Mapping[str, Any], assignment: str, example: str = "eraser.reg=0.5") -> dict[str, Any]:
    """Return a config with one `key.key=value` set; the value is YAML.

    Args:
        config: The config.
        assignment: The assignment.
        example: Assignment that an error shows.

    Raises:
        InputError: It is not an assignment, or its path leads through a value without keys.
    """
    path, sign, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        shape = ".".join("key" for _ in example.partition("=")[0].split("."))
        raise InputError(f"--set: expected {shape}=value, got {assignment!r}. Write for example {example}.")
    value = plain_yaml(text, f"--set {one_line(path)}")
    changed = json.loads(json.dumps(config))
    place: object = changed
    for key in keys[:-1]:
        place = place[int(key)] if _is_index(place, key) else _child(place, key, assignment)
    if _is_index(place, keys[-1]):
        place[int(keys[-1])] = value
    elif isinstance(place, dict):
        place[keys[-1]] = value
    else:
        raise InputError(f"--set: expected a path to a setting, got {assignment!r}. {shortened(place)} has no keys.")
    return changed


def with_assignments(
    kind: type[AnySettings],
    assignments: Sequence[str],
    start: Mapping[str, Any] | None = None,
    example: str = "lr=1e-5",
) -> AnySettings:
    """Return a dataclass of settings from `--set` assignments over initial ones; see `with_settings`.

    Args:
        kind: Dataclass of settings.
        assignments: The assignments.
        start: Initial settings; None for none.
        example: Assignment that an error shows.

    Raises:
        UnknownNameError: A setting does not exist.
        InputError: A value is of the wrong type or out of range.
    """
    config: Mapping[str, Any] = dict(start or {})
    for assignment in assignments:
        config = override(config, assignment, example)
    return with_settings(kind, config, where="--set ")


def _child(place: object, key: str, assignment: str) -> object:
    if not isinstance(place, dict):
        raise InputError(f"--set: expected a path to a setting, got {assignment!r}. {shortened(place)} has no keys.")
    return place.setdefault(key, {})


def _is_index(place: object, key: str) -> TypeGuard[list[object]]:
    return isinstance(place, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(place)
