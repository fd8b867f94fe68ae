"""HTML pages that need nothing else: a template of `templates/` filled in, with images inside."""

import base64
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from erasure.io.text import visible

from ..images.png import as_png


def filled(template: str, **values: Any) -> str:
    """Return the template `templates/TEMPLATE.html.jinja` with its values; texts are shown as they are.

    Markup in a text is escaped, and so are control characters.
    """
    file = resources.files("erasure.eval.reports").joinpath(f"templates/{template}.html.jinja")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_seen
    )
    return environment.from_string(file.read_text(encoding="utf-8")).render(**values)


def _seen(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def embedded(image: Image.Image | bytes, largest: int | None = None) -> str:
    """Return an image, or the bytes of a PNG file, as the address of an <img>.

    Args:
        image: The image.
        largest: Largest side in pixels, to which an image is shrunk; None keeps its size.
    """
    if not isinstance(image, bytes):
        shown = image.copy()
        if largest is not None:
            shown.thumbnail((largest, largest))
        image = as_png(shown)
    return "data:image/png;base64," + base64.b64encode(image).decode()
