"""Records of experiments on the tiny world."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure.io.files import write_whole


def plain_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return a command's options without places on a machine."""
    return {key: value for key, value in vars(options).items() if not isinstance(value, Path)}


def write_record(record: Mapping[str, Any], folder: Path) -> Path:
    """Write `run.json` and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    path = folder / "run.json"
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    return path
