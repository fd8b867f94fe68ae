"""Artists: the style lists of ESD, UCE and SPM."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from erasure.concept import normalized
from erasure.registry import Exactness

from .base import Item, LabelledList, unique_cases
from .lists import read_list


@dataclass(frozen=True, kw_only=True)
class Artists(LabelledList):
    """Prompts in the manner of artists; those of artists that were not removed measure retention.

    The tables of ESD, UCE and RECE pair five famous artists (big_artist_prompts) with five modern ones
    (short_niche_art_prompts); UCE's many-artist table takes artists1734_prompts and holdout100_prompts.

    Attributes:
        path: A CSV file with the columns case_number, prompt, evaluation_seed, artist.
    """

    name: ClassVar[str] = "artists"
    exactness: ClassVar[Exactness] = "published"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "rohitgandikota/erasing data/*art*_prompts.csv (arXiv:2303.07345);"
        " rohitgandikota/unified-concept-editing data/artists1734_prompts.csv, holdout100_prompts.csv"
        " (arXiv:2308.14761); Con6924/SPM benchmark/*_prompts.csv (arXiv:2312.16145)"
    )
    licence: ClassVar[str] = "MIT (ESD, UCE), Apache-2.0 (SPM)"
    seeds: ClassVar[str] = "evaluation_seed of each row"
    published_scheduler: ClassVar[str] = "LMSDiscreteScheduler"  # eval-scripts/generate-images.py of ESD and UCE
    steps: ClassVar[int] = 100
    guidance_scale: ClassVar[float] = 7.5

    path: Path

    def read(self) -> tuple[Item, ...]:
        rows = read_list(self.path, ("case_number", "prompt", "evaluation_seed", "artist"))
        role = self.roles([row.text("artist") for row in rows])
        items = [
            Item(
                case=row.text("case_number"),
                prompt=row.text("prompt"),
                seed=row.whole("evaluation_seed"),
                **vars(role[normalized(row.text("artist"))]),
            )
            for row in rows
        ]
        return unique_cases(self.name, items)
