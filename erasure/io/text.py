"""Text of people: its composed form, and a form that a terminal shows and never obeys."""

import hashlib
import html
import re
import unicodedata

from ..errors import InputError


def _characters(*ranges: tuple[int, int]) -> frozenset[str]:
    return frozenset(chr(code) for first, last in ranges for code in range(first, last + 1))


# Characters without a width that say nothing in a name: hyphenation, direction, fillers, a byte order mark.
_INVISIBLE = _characters(
    *((code, code) for code in (0xAD, 0x34F, 0x61C, 0x180E, 0x3164, 0xFEFF, 0xFFA0, 0xE0001)),
    *((0x115F, 0x1160), (0x200B, 0x200B), (0x200E, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFFF9, 0xFFFB)),
)
# Those that join the characters beside them, or choose the form of the one before: of emoji and of some scripts.
_JOINING = _characters((0x200C, 0x200D), (0xFE00, 0xFE0F), (0xE0020, 0xE007F), (0xE0100, 0xE01EF))
# Characters that change the direction or the place of what is shown around them, or are not shown at all.
_UNSEEN = _INVISIBLE | {"\u2028", "\u2029"}

# The noun of a unit such as "updates", "sampling steps", "bits a weight"; "times" counts nothing.
_PLURAL = re.compile(r"^((?:sampling )?(?!times\b)\w+)s\b")


def composed(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), in which an accent is one character with its letter."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def without_invisible(text: str, *, joining: bool = False) -> str:
    """Return a text without the characters that nobody sees and that make two texts of what looks like one.

    Args:
        text: Any text.
        joining: Whether those go too that join what stands beside them; else they stay between characters beyond
            ASCII, of which some scripts and emoji need them.
    """
    if text.isascii():
        return text
    seen = "".join(sign for sign in text if sign not in _INVISIBLE)
    if joining:
        return "".join(sign for sign in seen if sign not in _JOINING)
    beside = zip(" " + seen, seen, seen[1:] + " ", strict=False)
    return "".join(
        sign for before, sign, after in beside if sign not in _JOINING or not (before.isascii() or after.isascii())
    )


def check_unicode(text: str, where: str) -> None:
    """Raise InputError for a text with half of a surrogate pair, which no file and no tokenizer takes."""
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise InputError(f"{where}: expected text in Unicode, got {text!r}. Write it in UTF-8.")


def names_something(text: str) -> bool:
    """Return True for a text with a letter, a digit or a pictograph, such as an emoji; False for punctuation alone."""
    return any(unicodedata.category(sign)[0] in "LN" or unicodedata.category(sign) == "So" for sign in text)


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
    """Return the repr of a value, at most 200 characters of it; a number too long to be written is named so."""
    try:
        text = repr(value)
    except ValueError:  # of a number with more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:199]}…"


def counted(number: float | int, unit: str) -> str:
    """Return a number with its unit, a plural of which is singular for one: "1 update", "2 updates"."""
    singular = _PLURAL.sub(r"\1", unit)
    return f"{number:g} {singular if number == 1 else unit}"


def is_control(sign: str) -> bool:
    """Return True for a character that a terminal obeys or does not show, and for half of a surrogate pair."""
    return unicodedata.category(sign) in ("Cc", "Cs") or sign in _UNSEEN


def in_html(text: str) -> str:
    """Return a text as HTML that shows it as it is, also within an attribute: no tag, no control character."""
    return html.escape(visible(text))


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
