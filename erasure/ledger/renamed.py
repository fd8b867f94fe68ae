"""Settings that have another name or value now than in the records of earlier versions.

A record stays as it was written; only what makes a removal again reads it by today's names.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..arguments import checks_arguments
from ..edits import EditMetadata
from ..erasers import Eraser, eraser_names, make_eraser
from ..errors import ErasureError
from .record import Entry

# Path of a setting before -> now, by eraser; "a.b" is the setting b of the piece a.
_TERMS = {"preservation": "shape.keep"}
RENAMED_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "esd": _TERMS,
    "trce": _TERMS,
    "duge": {
        **_TERMS,
        "fisher_pictures": "fisher_images",
        "target_pictures": "target_images",
        "picture_steps": "image_steps",
        "picture_guidance": "image_guidance",
        "probe_pictures": "probe_images",
    },
}
# Value before -> now, by eraser and by the setting's name now.
RENAMED_VALUES: Mapping[tuple[str, str], Mapping[str, str]] = {("duge", "trained"): {"attn2": "cross"}}


@checks_arguments
def present_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings of an eraser under the names and values that it has now."""
    names = RENAMED_SETTINGS.get(method, {})
    present: dict[str, Any] = {}
    for name, value in settings.items():
        setting, _, inner = names.get(name, name).partition(".")
        if inner:
            present.setdefault(setting, {})[inner] = value
        else:
            values = RENAMED_VALUES.get((method, setting), {})
            present[setting] = values.get(value, value) if isinstance(value, str) else value
    return present


@lru_cache(maxsize=256)  # the entries of a long ledger have few settings
def _eraser(method: str, settings: str) -> Eraser | None:
    try:
        return make_eraser(method, **present_settings(method, json.loads(settings)))
    except ErasureError:
        return None


@checks_arguments
def recorded_eraser(record: Entry | EditMetadata) -> Eraser | None:
    """Return the eraser of a removal; None for an edit that no eraser made, or none of this version."""
    known = record.method in eraser_names()
    return _eraser(record.method, json.dumps(record.settings, sort_keys=True)) if known else None
