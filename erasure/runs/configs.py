"""Config files, and the default settings of a method on a model."""

from pathlib import Path
from typing import Any

from ..erasers import eraser_class
from ..errors import InputError
from ..io.text import shortened
from ..io.yaml_text import plain_yaml
from ..profile import profile_of


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 file of one run, unchecked.

    Raises:
        InputError: It cannot be read, is not YAML, or does not hold a mapping.
    """
    where = f"config {str(path)!r}"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"config: expected a file to read, got {str(path)!r} ({error.strerror}). Check the path."
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: expected YAML in UTF-8, got {str(error)!r}. Save it as UTF-8.") from None
    data = plain_yaml(text, where)
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected keys such as model and eraser, got {shortened(data)}. Write a run.")
    return data


def starting_settings(method: str, model: str) -> dict[str, Any]:
    """Return the default settings of a method, updated by the model's profile and its example config.

    Raises:
        UnknownNameError: There is no such eraser.
    """
    kind = eraser_class(method)
    settings = kind().as_settings()
    profile = profile_of(model)
    settings |= profile.settings(method)
    if (example := profile.example(method)) is not None:
        settings |= read_config(example)["eraser"]
        del settings["name"]
    return settings
