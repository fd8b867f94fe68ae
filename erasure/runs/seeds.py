"""Lists of seeds: "0,1,2" and "0-7"."""

from ..errors import InputError
from ..io.text import shortened

MOST = 10_000
"""Number of seeds that one list may hold."""
_DIGITS = 18  # of a number that a generator takes


def read_seeds(text: str, where: str = "--seeds", most: int = MOST) -> list[int]:
    """Read a list of seeds; one that comes twice counts once.

    Args:
        text: Seeds and ranges of seeds, separated by commas.
        where: Name of the option in errors.
        most: Largest number of seeds.

    Raises:
        InputError: The text has another form, a range that falls, or too many seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        last = high if dash else low
        if not all(piece.isascii() and piece.isdigit() for piece in (low, last)):
            raise InputError(f"{where}: expected whole numbers from 0, got {text!r}. Write for example 0,1,2 or 0-7.")
        if longest := next((piece for piece in (low, last) if len(piece) > _DIGITS), None):
            raise InputError(
                f"{where}: expected numbers of at most {_DIGITS} digits, got {shortened(longest)}. Give smaller ones."
            )
        if int(last) < int(low):
            raise InputError(f"{where}: expected ranges that rise, got {part.strip()!r}. Write {last}-{low}.")
        count = len(seeds) + int(last) - int(low) + 1
        if count > most:
            raise InputError(f"{where}: expected at most {most} seeds, got {count}. Give fewer.")
        seeds.extend(range(int(low), int(last) + 1))
    return list(dict.fromkeys(seeds))
