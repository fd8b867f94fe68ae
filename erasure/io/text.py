"""Text of people: its composed form, and a form that a terminal shows and never obeys."""

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
    return "".join(_escape(sign) if _is_control(sign) and sign not in keep else sign for sign in text)


def one_line(text: str) -> str:
    """Return a text on one line, without control characters."""
    return " ".join(visible(" ".join(text.split())).split())


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cs") or sign in _UNSEEN


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
