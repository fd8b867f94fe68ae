"""Random damage: to bytes, to texts, to JSON values; the same for the same seed."""

import copy
import json
import random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", " ", "a", "\0", "\x1b[31m", "é", "e\u0301", "\u202e", "猫", "../../x", "/", "x" * 300, "[red]", "<b>"),
    *([], [[]], {}, {"a": 1}, [None], [1, "a"], {"": {}}),
)
"""Values that take another's place."""

PIECES = (
    *("\n", "\t", "\0", " ", ",", ";", "|", '"', "'", ":", "#", "-", "[", "]", "{", "}", "&a ", "*a", "!!int ", "!!x "),
    *("1e999", ".inf", ".nan", "2020-99-99", "9" * 400, "\x1b[31m", "\ufeff", "é", "e\u0301", "猫", "\u202e", "---\n"),
    *("target", "concept", "anchor", "preserve", "null", "true", "~", "? ", "<<: ", "%YAML 1.1\n", "\r", "\r\n", "\\"),
)
"""Texts that are put in."""


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return bytes cut, flipped, doubled or filled with others at one place."""
    start = chance.randrange(len(content) + 1)
    length = chance.choice((1, 2, 8, 64, 512))
    kind = chance.randrange(6)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + content[start + length :]
    if kind == 2:
        return content[:start] + content[start : start + length] + content[start:]
    if kind == 3:
        return content[:start] + chance.randbytes(length) + content[start + length :]
    if kind == 4:
        return b""
    flipped = bytearray(content)
    for _ in range(chance.randrange(1, 5)):
        if flipped:
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def damaged_text(text: str, chance: random.Random) -> str:
    """Return a text with some pieces put in, taken out or moved."""
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice((0, 0, 1, 5, 40)))
        piece = chance.choice((*PIECES, text[end : end + 20], "".join(chance.choices(PIECES, k=5))))
        text = text[:start] + piece + text[end:]
    return text


def damaged_json(value: Any, chance: random.Random) -> Any:
    """Return a value of JSON with another value, key or member at a random place."""
    value = copy.deepcopy(value)
    for _ in range(chance.randrange(1, 3)):
        value = _damaged_place(value, chance)
    return value


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON, with the non-finite numbers that Python writes and half surrogate pairs escaped."""
    return json.dumps(value).encode()


def _damaged_place(value: Any, chance: random.Random) -> Any:
    if not value or not isinstance(value, dict | list) or chance.random() < 0.15:
        return copy.deepcopy(chance.choice(VALUES))
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    kind = chance.randrange(5)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, dict):
        value[chance.choice(("x", "", "target", f"{key}x"))] = value.pop(key)
    elif kind == 1:
        value.append(copy.deepcopy(value[key]))
    else:
        value[key] = _damaged_place(value[key], chance)
    return value
