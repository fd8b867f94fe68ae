"""Text of people: its composed form, and a form that a terminal shows and never obeys."""

import hashlib
import html
import re
import unicodedata

# Characters that change the direction or the place of what is shown around them, or are not shown at all.
_UNSEEN = {"\u00ad", "\u200b", "\u200e", "\u200f", "\u2028", "\u2029", "\ufeff"}
_UNSEEN |= {chr(code) for start, end in ((0x202A, 0x202F), (0x2060, 0x2070)) for code in range(start, end)}


def composed(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), in which an accent is one character with its letter."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Return a text with each control character as its escape: "\x1b[31m" instead of red.

    Args:
        text: Any text.
        keep: Control characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(sign) if is_control(sign) and sign not in keep else sign for sign in text)


def one_line(text: str) -> str:
    """Return a text on one line, without control characters."""
    return " ".join(visible(" ".join(text.split())).split())


def shortened(value: object) -> str:
    """Return the repr of a value, at most 200 characters of it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def is_control(sign: str) -> bool:
    """Return True for a character that a terminal obeys or does not show, and for half of a surrogate pair."""
    return unicodedata.category(sign) in ("Cc", "Cs") or sign in _UNSEEN


def in_markdown(text: str) -> str:
    """Return a text as Markdown that shows it as it is, on one line, wherever it stands in one: no tag, no link."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(one_line(text), quote=False))


def as_code(text: str) -> str:
    """Return a text as a code span of Markdown, also in a table."""
    line = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}".replace("|", "\\|")


def slug(text: str, most: int, empty: str) -> str:
    """Return the ASCII letters and digits of a text as a part of a file name.

    Args:
        text: Any text.
        most: Largest number of characters.
        empty: Name of a text without any.
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].strip("-") or empty


def distinct_slug(text: str, most: int, empty: str) -> str:
    """Return a part of a file name that no other text has: `slug`, with a digest where that leaves something out."""
    words = slug(text, most, empty)
    if words.replace("-", " ") == text:
        return words
    return f"{words}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
