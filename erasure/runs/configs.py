"""Config files, and the default settings of a method on a model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ..erasers import eraser_class
from ..errors import InputError
from ..io.text import one_line
from ..profile import profile_of


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 file of one run, unchecked.

    Raises:
        InputError: It cannot be read, is not YAML, or does not hold a mapping.
    """
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config: expected a file to read, got {str(path)!r} ({error.strerror}).") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {str(path)!r}: expected YAML, got {one_line(str(error))!r}.") from None
    if not isinstance(data, dict):
        raise InputError(f"config {str(path)!r}: expected keys such as model and eraser, got {data!r}.")
    return data


def starting_settings(method: str, model: str) -> dict[str, Any]:
    """Return the default settings of a method, updated by the model's profile and its example config.

    Raises:
        UnknownNameError: There is no such eraser.
    """
    kind = eraser_class(method)
    settings = asdict(kind())
    profile = profile_of(model)
    settings |= profile.settings(method)
    if (example := profile.example(method)) is not None:
        settings |= read_config(example)["eraser"]
        del settings["name"]
    return settings
