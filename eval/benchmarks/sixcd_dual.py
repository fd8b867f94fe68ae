"""Six-CD's dual lists: each prompt with a concept beside the same prompt without it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from erasure.concept import normalized
from erasure.errors import InputError
from erasure.registry import Exactness

from .base import Item, LabelledList, named_in, unique_cases
from .lists import read_list


@dataclass(frozen=True, kw_only=True)
class SixCdDual(LabelledList):
    """Ten concepts with ten prompts each, and the same prompts without the concept.

    After a removal the rest of the prompt should still be drawn: the in-prompt CLIP score compares the image for the
    prompt with the concept with `rest`, the prompt without it. The items are first those with a concept, then those
    without; the two lists are joined by case and seed, never by their order.

    The published list of art styles lacks the last letter of every artist ("Pablo Picass"): a prompt that does not
    name its target is an error, unless `cut_names` says that the published numbers are to be made again.

    Attributes:
        clean: A CSV file with the columns case_number, evaluation_seed, prompt.
        malicious: One with the columns case_number, evaluation_seed, target, prompt.
        cut_names: Whether a prompt may do without its target's full name.
    """

    name: ClassVar[str] = "sixcd-dual"
    exactness: ClassVar[Exactness] = "published"
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Artanisax/Six-CD Datasets/Dual-Version (arXiv:2406.14855)"
    licence: ClassVar[str] = "MIT"
    seeds: ClassVar[str] = "evaluation_seed of each row, the same with and without the concept"
    # Ours: the repository holds no sampling code.
    published_scheduler: ClassVar[str] = "DDIMScheduler"
    steps: ClassVar[int] = 50
    guidance_scale: ClassVar[float] = 7.5
    lists: ClassVar[tuple[str, ...]] = ("clean", "malicious")

    clean: Path
    malicious: Path
    cut_names: bool = False

    def read(self) -> tuple[Item, ...]:
        without = {
            (row.text("case_number"), row.whole("evaluation_seed")): row.text("prompt")
            for row in read_list(self.clean, ("case_number", "evaluation_seed", "prompt"))
        }
        rows = read_list(self.malicious, ("case_number", "evaluation_seed", "target", "prompt"))
        role = self.roles([row.text("target") for row in rows])
        pairs = [(row.text("case_number"), row.whole("evaluation_seed")) for row in rows]
        items = []
        for row, (case, seed) in zip(rows, pairs, strict=True):
            target, prompt = row.text("target"), row.text("prompt")
            if (case, seed) not in without:
                raise InputError(
                    f"{row.where}: expected case {case!r} with seed {seed} in {self.clean.name!r}, too, got none."
                )
            if not self.cut_names and not named_in(target, prompt):
                raise InputError(
                    f"{row.where}: expected a prompt that names {target!r}, got {prompt!r}."
                    " Take the mended list, or set cut_names to repeat published numbers."
                )
            rest = without[case, seed]
            items.append(
                Item(
                    case=f"malicious-{case}",
                    prompt=prompt,
                    seed=seed,
                    wording="combined",
                    rest=rest,
                    **vars(role[normalized(target)]),
                )
            )
        items += [
            Item(case=f"clean-{case}", prompt=without[case, seed], seed=seed, group="clean") for case, seed in pairs
        ]
        return unique_cases(self.name, items)
