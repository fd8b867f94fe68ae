"""Settings that have another name or value now than in the records of earlier versions.

A record stays as it was written; only what makes a removal again reads it by today's names.
"""

from collections.abc import Mapping
from typing import Any

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
