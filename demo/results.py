"""Results of the actions of a visitor, which a reloaded page shows again."""

from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from erasure.sampling import Pair

from ..eval.images.attention_maps import AttentionTrace
from ..eval.judges.readings import Seen


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """Images of the original and the edited model for the same prompts and seeds.

    Attributes:
        pairs: Prompt and seed of each image.
        before: Images of the original.
        after: Images of the edited model; None before the first removal.
        seen: Readings of each image by the judge.
        removed: Concepts that were removed.
        judge: Name of the judge; "" for none.
        cut: Prompts that are longer than the input of the text encoder.
        entries: Ids of the entries that stood.
    """

    pairs: tuple[Pair, ...]
    before: tuple[Image, ...]
    after: tuple[Image, ...] | None
    seen: tuple[tuple[Seen, ...], ...]
    removed: tuple[str, ...] = ()
    judge: str = ""
    cut: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attended:
    """Attention maps of words over the sampling steps, without and with A-STAR.

    Attributes:
        prompt: Prompt of the image.
        names: Words of the prompt.
        plain: Image and maps without A-STAR.
        guided: Image and maps with A-STAR.
        sheet: All maps in one image.
        entries: Ids of the entries that stood.
    """

    prompt: str
    names: tuple[str, ...]
    plain: AttentionTrace
    guided: AttentionTrace
    sheet: Image
    entries: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of a measurement.

    Attributes:
        table: Header and rows, as texts.
        page: File of the report.
        scores: File of the scores, JSON.
        entries: Ids of the entries that stood.
        notes: Warnings for the reader.
    """

    table: tuple[tuple[str, ...], ...]
    page: Path
    scores: Path
    entries: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file.

    Attributes:
        path: Path of the file.
        about: Notes for the visitor.
        entries: Ids of the entries that stood.
        card: Model card, as Markdown without images and metadata; "" without one.
    """

    path: Path
    about: str
    entries: tuple[str, ...]
    card: str = ""
