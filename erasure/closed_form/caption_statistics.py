"""Ordinary captions, and the second moment of their text states, which a closed form holds in place."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT
from ..concept import Concept
from ..errors import InputError
from ..io.csv_rows import CsvRow, csv_rows
from ..io.tensor_cache import stored
from ..prompts import GENERIC, fill, preserved_templates, speaks_of, templates

Captions = Callable[[], Iterable[str]] | Sequence[str]

_BATCH = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """The second moment of the text states of many captions.

    Attributes:
        id: Tells these captions from others.
        states: Sum of e e^T over all tokens of all captions, padding included; float64 on the CPU.
        pooled: Likewise over the sentence vectors, for models that have one.
        captions: Number of captions.
        tokens: Number of tokens.
    """

    id: str
    states: Float[Tensor, "dim dim"]
    pooled: Float[Tensor, "pooled pooled"] | None
    captions: int
    tokens: int


def statistics(backbone: Backbone, captions: Captions, *, folder: Path | None = None) -> Statistics:
    """Return the statistics of captions, from the folder where they were computed before.

    Captions are read and encoded a batch at a time: memory does not grow with their number.

    Args:
        backbone: The model whose text encoder reads them.
        captions: Texts, or a function that gives them anew each time.
        folder: Folder that keeps the statistics; None keeps nothing.

    Raises:
        InputError: There are no captions, or the folder cannot be written or holds a damaged file.
    """
    source = captions if callable(captions) else lambda: captions
    name = _digest(source())
    key = ["captions", name, _text_fingerprint(backbone)]
    tensors = stored(folder, key, lambda: _summed(backbone, source()))
    captions_read, tokens = (int(number) for number in tensors["counts"].tolist())
    return Statistics(
        id=name, states=tensors["states"], pooled=tensors.get("pooled"), captions=captions_read, tokens=tokens
    )


def word_moment(backbone: Backbone, captions: Captions, *, folder: Path | None = None) -> Float[Tensor, "dim dim"]:
    """Return the mean of e e^T over the states of captions up to their first end of text; float64 on the CPU.

    Args:
        backbone: The model whose text encoder reads them.
        captions: See `statistics`.
        folder: See `statistics`.

    Raises:
        InputError: See `statistics`.
    """
    return _mean(*_words(backbone, captions, folder))


def ordinary_moment(
    backbone: Backbone, concepts: Sequence[Concept], *, folder: Path | None = None
) -> Float[Tensor, "dim dim"]:
    """Return the word moment of the ordinary captions of concepts; see `ordinary_captions`.

    Captions of things are the same for any concepts but for those that speak of them, which are taken off the sum of
    all: a folder keeps that sum for other concepts.
    """
    things = _things()
    total, count = _words(backbone, things, folder)
    ordinary = ordinary_captions(concepts)
    for sign, captions in ((-1, set(things) - set(ordinary)), (1, set(ordinary) - set(things))):
        if captions:
            part, number = _words(backbone, sorted(captions))
            total, count = total + sign * part, count + sign * number
    return _mean(total, count)


def _mean(total: Float[Tensor, "dim dim"], count: int) -> Float[Tensor, "dim dim"]:
    if not count:
        raise InputError("captions: expected at least one, got none. Give a file of ordinary captions.")
    return total / count


def _words(backbone: Backbone, captions: Captions, folder: Path | None = None) -> tuple[Float[Tensor, "..."], int]:
    """Return the sum of e e^T over the states of captions up to their first end of text, and the number of these."""
    source = captions if callable(captions) else lambda: captions
    key = [] if folder is None else ["words", _digest(source()), _text_fingerprint(backbone)]
    tensors = stored(folder, key, lambda: _summed_words(backbone, source()))
    return tensors["states"], int(tensors["count"])


@torch.no_grad()
def _summed_words(backbone: Backbone, captions: Iterable[str]) -> dict[str, Tensor]:
    rest = iter(captions)
    total, count = torch.zeros(()), 0
    while batch := list(itertools.islice(rest, _BATCH)):
        for tokens, states in backbone.read(batch, trailing=False).streams[TEXT].parts():
            read = torch.arange(states.shape[1])[None] <= tokens.ends.cpu()[:, None]
            rows = states.cpu()[read].double()
            total, count = total + rows.T @ rows, count + len(rows)
    return {"states": total, "count": torch.tensor(count)}


def _digest(captions: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(caption.encode() + b"\n")
    return digest.hexdigest()[:16]


def _things() -> list[str]:
    return [template.replace("{}", thing) for thing in GENERIC for template in templates("identity")]


def ordinary_captions(concepts: Sequence[Concept]) -> list[str]:
    """Return captions of everyday things, and of what the concepts preserve, that name none of the concepts.

    Things come in the templates without an article, preserved names in those that they are held in while a concept of
    that kind is removed.
    """
    kept = [
        fill(template, name)
        for concept in concepts
        for name in concept.preserve
        for template in preserved_templates(concept.kind)
    ]
    return [caption for caption in dict.fromkeys(["", *kept, *_things()]) if not speaks_of(caption, concepts)]


def read_captions(path: str | Path) -> Iterator[str]:
    """Yield the captions of a file: one a line, or in a CSV's column "caption" or "prompt".

    Raises:
        InputError: It cannot be read, or is a CSV without such a column.
    """
    path = Path(path)
    where = f"captions {str(path)!r}"
    if path.suffix.casefold() == ".csv":
        yield from _captions_of_rows(csv_rows(path, where), where)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from (line.strip() for line in file if line.strip())
    except OSError as error:
        raise InputError(f"captions: expected a file to read, got {str(path)!r} ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"captions: expected text in UTF-8 in {str(path)!r}, got {str(error)!r}.") from None


def _captions_of_rows(rows: Iterator[CsvRow], where: str) -> Iterator[str]:
    heading = next(rows, CsvRow(where=f"{where} line 1", cells=())).stripped()
    columns = [i for i, cell in enumerate(heading.cells) if cell.casefold() in ("caption", "prompt")]
    if len(columns) != 1:
        named = ", ".join(map(repr, heading.cells)) or "none"
        raise InputError(
            f"{heading.where}: expected a column caption or prompt, got {named}. Name one, and only one, of them so."
        )
    for row in rows:
        if row.cells and len(row.cells) != len(heading.cells):
            raise InputError(
                f"{row.where}: expected {len(heading.cells)} cells, got {len(row.cells)}. Quote cells with a comma."
            )
        if row.cells and (caption := row.stripped().cells[columns[0]]):
            yield caption


def square_root(second: Float[Tensor, "d d"]) -> Float[Tensor, "r d"]:
    """Return rows whose sum of outer products is the given matrix: they stand for all the states it was summed from."""
    values, vectors = torch.linalg.eigh(second)
    values = values.clamp(min=0)
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    return (vectors * values.sqrt()).T[kept]


def _summed(backbone: Backbone, captions: Iterable[str]) -> dict[str, Tensor]:
    rest = iter(captions)
    sums: dict[str, Tensor] = {}
    count = tokens = 0
    while batch := list(itertools.islice(rest, _BATCH)):
        read = backbone.read(batch)
        states = read.streams[TEXT].read_states()
        parts = {"states": states, **({} if read.pooled is None else {"pooled": read.pooled})}
        for name, rows in parts.items():
            rows = rows.to(device="cpu", dtype=torch.float64)
            sums[name] = sums[name].addmm_(rows.T, rows) if name in sums else rows.T @ rows
        count += len(batch)
        tokens += len(states)
    if not count:
        raise InputError("captions: expected at least one, got none. Give a file of ordinary captions.")
    return {**sums, "counts": torch.tensor([count, tokens])}


def _text_fingerprint(backbone: Backbone) -> str:
    """Return a fingerprint of the text encoder: its states of a few words, to six digits."""
    states = backbone.encode(["", "a photo of a house"]).states.float()
    return " ".join(f"{value:.5g}" for value in states[:, ::7, ::5].flatten()[:64].tolist())
