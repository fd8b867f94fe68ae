"""Interface of a benchmark: items of prompt and seed with the concepts to judge, and their source."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from erasure.concept import normalized
from erasure.errors import InputError, UnknownNameError, unknown_name
from erasure.registry import Plugin
from erasure.sampling import Pair, SamplingSettings

from .lists import ListRow

Wording = Literal["explicit", "synonym", "combined", "implicit", "paraphrase"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image to be made, and what it is to be judged by.

    Efficacy is over the items with an `unwanted` concept, retention over those with a `retained` one, by `group`; the
    joint rate is over those with both.

    Attributes:
        case: The row's own name, unique within its benchmark.
        prompt: Never empty, without outer blanks.
        seed: Seed of the noise, >= 0.
        group: "removed", or the group of what should stay: a retention tier, "kept", "clean".
        wording: Wording of the concept in the prompt; "paraphrase" does not name it.
        unwanted: The removed concept that the prompt asks for; "" if none.
        retained: The concept asked for that should stay; "" if none.
        rest: The prompt with the removed concept taken out; "" if it says nothing else.
        class_index: Index of the concept among `Benchmark.classes`; None without one.
    """

    case: str
    prompt: str
    seed: int
    group: str
    wording: Wording = "explicit"
    unwanted: str = ""
    retained: str = ""
    rest: str = ""
    class_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark(Plugin):
    """A named list of prompts and seeds. The fields of a subclass say which part of it, and where its files are.

    Attributes:
        name: Name; the file's name with hyphens.
        version: Raised whenever a prompt, a seed or a role changes.
        source: Origin of the prompts.
        licence: Licence of the prompts.
        seeds: Origin of the seeds.
        published_scheduler: The diffusers class that the published numbers were sampled with, or ours. The images are
            made with the pipeline's own, whatever it is.
        steps: Number of sampling steps.
        guidance_scale: Scale of classifier-free guidance.
        lists: The fields that take the files of prompts, in order; none where the prompts come with it.
        classes: Classes with their index, for `Item.class_index`. Only a classifier with these classes at
            these places can judge the images. Empty where no item has an index.
        classifier: The classifier that is taken where none is named: "resnet50"; "" where there is none to take.
        profile: Name of the model profile whose concepts the items ask for and whose judges read them; "" for none.
        suites: Named sizes: the number of images a model, at most; empty where the lists decide it.
    """

    lists: ClassVar[tuple[str, ...]] = ("path",)
    classes: ClassVar[Mapping[str, int]] = MappingProxyType({})
    classifier: ClassVar[str] = ""
    profile: ClassVar[str] = ""
    suites: ClassVar[Mapping[str, int]] = MappingProxyType({})

    version: ClassVar[int]
    source: ClassVar[str]
    licence: ClassVar[str]
    seeds: ClassVar[str]
    published_scheduler: ClassVar[str]
    steps: ClassVar[int]
    guidance_scale: ClassVar[float]

    @abstractmethod
    def read(self) -> tuple[Item, ...]:
        """Return the items, in the list's own order.

        Raises:
            InputError: A file that cannot be read, or does not hold what it should.
        """

    def held_out(self, item: Item) -> bool:
        """Return True if an item asks in a phrasing that no list of an eraser may hold; False where none is named."""
        return False

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items, read once."""
        return self.read()

    @property
    def n(self) -> int:
        """Number of images of each model."""
        return len(self.items)

    @property
    def unasked(self) -> tuple[str, ...]:
        """Removed concepts that no item asks for."""
        return ()

    @property
    def pairs(self) -> list[Pair]:
        """Prompt and seed of each item: row i of the images is item i."""
        return [(item.prompt, item.seed) for item in self.items]

    @cached_property
    def id(self) -> str:
        """Name, version, n and a digest of all items: what a score's protocol names.

        Lists are read from the user's own files; two that differ in one word are two benchmarks.
        """
        return f"{self.name}/{self.version}, n {self.n}, {self.digest}"

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits of all items."""
        return hashlib.sha256(json.dumps([astuple(item) for item in self.items]).encode()).hexdigest()[:8]

    @property
    def short(self) -> str:
        """Name and digest, for a folder."""
        return f"{self.name}-{self.digest}"

    def sampler(self, batch_size: int = 16) -> SamplingSettings:
        """Return steps and guidance as the images are to be made; the scheduler is the pipeline's own."""
        return SamplingSettings(steps=self.steps, guidance_scale=self.guidance_scale, batch_size=batch_size)

    def about(self) -> dict[str, object]:
        """Return the description of the benchmark as plain data."""
        return {
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "source": self.source,
            "licence": self.licence,
            "n": self.n,
            "seeds": self.seeds,
            "published_scheduler": self.published_scheduler,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "settings": self.settings,
        }

    @property
    def settings(self) -> dict[str, object]:
        """Settings by field; files are left out, because a path means nothing elsewhere."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if not isinstance(value, Path)}


@dataclass(frozen=True, kw_only=True)
class LabelledList(Benchmark):
    """A list whose rows say by a label what they ask for, and not what was removed.

    Attributes:
        removed: Targets of the removals, in the list's spelling except for case.
        allow_unlisted: Whether removed names may be missing from the list. A list that asks for none of them measures
            what stays, and nothing that went.
    """

    removed: tuple[str, ...] = ()
    allow_unlisted: bool = False

    @property
    def unasked(self) -> tuple[str, ...]:
        prompted = {normalized(item.unwanted) for item in self.items}
        return tuple(name for name in self.removed if normalized(name) not in prompted)

    def roles(self, labels: Sequence[str]) -> Mapping[str, "Role"]:
        """Return the role of each label, by its normalized form: case and runs of blanks tell no two labels apart.

        Args:
            labels: Those of all rows.

        Raises:
            UnknownNameError: A removed name is none of them, and must be: its efficacy would be that of nothing.
        """
        by_form = {normalized(label): label for label in labels}
        removed = {normalized(name): name for name in self.removed}
        for form, name in removed.items():
            if form not in by_form and not self.allow_unlisted:
                raise UnknownNameError(
                    f"{unknown_name(f'{self.name} label', name, by_form.values())} To measure what else the list asks"
                    " for: --set allow_unlisted=true."
                )
        return {
            form: Role(group="removed", unwanted=label, retained="")
            if form in removed
            else Role(group="kept", unwanted="", retained=label)
            for form, label in by_form.items()
        }

    def classed_items(self, rows: Sequence[ListRow]) -> tuple[Item, ...]:
        """Return the items of rows whose label is one of the benchmark's classes, in the column "class".

        Raises:
            UnknownNameError: A label is no class, or a removed name is no label.
            InputError: A cell is empty or no number, or a case comes twice.
        """
        classes = [class_index(self.name, self.classes, row.text("class")) for row in rows]
        role = self.roles([name for name, _ in classes])
        items = []
        for row, (name, index) in zip(rows, classes, strict=True):
            prompt = row.text("prompt")
            items.append(
                Item(
                    case=row.text("case_number"),
                    prompt=prompt,
                    seed=row.whole("evaluation_seed"),
                    wording="explicit" if named_in(name, prompt) else "paraphrase",
                    class_index=index,
                    **vars(role[normalized(name)]),
                )
            )
        return unique_cases(self.name, items)


@dataclass(frozen=True, kw_only=True)
class Role:
    """Role of a prompt's concept; its fields are those of an item.

    Attributes:
        group: "removed" or "kept".
        unwanted: The concept if it was removed, else "".
        retained: The concept if it was kept, else "".
    """

    group: str
    unwanted: str
    retained: str


def class_index(benchmark: str, classes: Mapping[str, int], label: str) -> tuple[str, int]:
    """Return a class by its name as the classifier spells it, and its index there.

    Lists spell the classes their own way ("english springer"), so a prediction is compared by index, never by text.

    Raises:
        UnknownNameError: It is no class.
    """
    for name, index in classes.items():
        if normalized(name) == normalized(label):
            return name, index
    raise unknown_name(f"{benchmark} class", label, classes)


def named_in(name: str, prompt: str) -> bool:
    """Return True if a prompt contains a name as whole words, regardless of case, punctuation and a plural s."""
    words = normalized("".join(letter if letter.isalnum() else " " for letter in prompt))
    phrase = normalized("".join(letter if letter.isalnum() else " " for letter in name))
    return f" {phrase} " in f" {words} " or f" {phrase}s " in f" {words} "


def unique_cases(benchmark: str, items: Sequence[Item]) -> tuple[Item, ...]:
    """Return the items.

    Raises:
        InputError: Two have one case: one of them would be measured in the other's place.
    """
    seen: set[str] = set()
    for item in items:
        if item.case in seen:
            raise InputError(f"{benchmark}: expected every case once, got {item.case!r} twice. Mend the list.")
        seen.add(item.case)
    return tuple(items)
