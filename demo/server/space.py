"""Files of a Hugging Face Space beside `app.py` and a built wheel.

Usage: `python -m erasure.demo.server.space owner/name FOLDER`. A Space installs `requirements.txt` before its other
files exist, so the wheel is named by its address in the uploaded Space.
"""

import argparse
import re
import sys
from importlib.metadata import version
from pathlib import Path

from erasure.errors import ErasureError, InputError
from erasure.io.files import write_whole

_README = """---
title: erasure
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: apache-2.0
---

Concept erasure for text-to-image diffusion models, on the tiny world that comes with the library.
"""


def main() -> None:
    """Write the two files into a folder that holds the wheel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("space", metavar="owner/name", help="name of the Space")
    parser.add_argument("folder", type=Path, help="folder with one wheel of this package")
    options = parser.parse_args()
    try:
        write(options.space, options.folder)
    except ErasureError as error:
        sys.exit(f"space: {error}")


def write(space: str, folder: Path) -> None:
    """Write `requirements.txt` and `README.md`.

    Raises:
        InputError: The name is not that of a Space, or the folder does not hold exactly one wheel or cannot be written.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", space):
        raise InputError(f"expected a Space as owner/name, got {space!r}.")
    wheels = sorted(folder.glob("erasure-*.whl"))
    if len(wheels) != 1:
        raise InputError(f"expected one wheel in {str(folder)!r}, got {len(wheels)}. Build it: make space.")
    address = f"https://huggingface.co/spaces/{space}/resolve/main/{wheels[0].name}"
    write_whole(folder / "requirements.txt", f"erasure[app] @ {address}\n".encode())
    write_whole(folder / "README.md", _README.format(gradio=version("gradio")).encode())


if __name__ == "__main__":
    main()
