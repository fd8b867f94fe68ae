"""Images for an evaluation: one for each row of prompts and seeds, made once, by one process or by several.

A store is a folder with a manifest, which says all that decides the images, and a PNG file a row. It is filled in by
`generate`, which after a kill goes on where it was stopped. A manifest that asks for something else, a file that the
manifest does not know, and an image that was made for another manifest are errors: what is measured is never a mix.
Files whose name starts with a dot are ignored: a killed write leaves one.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.io.files import make_folder, write_whole
from erasure.progress import OnProgress, ProgressCounter
from erasure.provenance import provenance
from erasure.sampling import Pair, SamplingSettings

from .ledger_images import make_files, slug
from .pipeline_digest import pipeline_digest

FORMAT = "erasure-images/2"
MANIFEST = "manifest.json"
# The last twelve bytes of every whole PNG file: the empty chunk IEND with its checksum.
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that decides the images of a store, but for the last bits that batches, threads and devices change.

    Attributes:
        precision: What the denoiser computed in: "float32".
        model: Digest of all that was in force while sampling, edited or not: networks, tokenizers, safety checker.
        edit: Id of what was in force on the model: an edit, a guidance; "" is nothing.
        scheduler: Its class as "name", and its settings.
        steps: Of the scheduler.
        guidance_scale: Of classifier-free guidance.
        negative_prompt: In place of the unconditional prompt; "" is the model's own.
        images: Prompt and seed of each row.
    """

    precision: str
    model: str
    edit: str
    scheduler: Mapping[str, Any]
    steps: int
    guidance_scale: float
    negative_prompt: str
    images: tuple[Pair, ...]

    @classmethod
    def of(
        cls, pipe: Any, prompts: Sequence[str], seeds: Sequence[int], sampler: SamplingSettings, edit: str = ""
    ) -> "Manifest":
        """Return what is asked for of a pipeline as it is now.

        Args:
            pipe: The pipeline, with whatever is in force on it.
            prompts: One for each image.
            seeds: As many; any integer from 0 on is a seed.
            sampler: How they are made; its batch size does not count.
            edit: Id of what is in force.

        Raises:
            InputError: There are no prompts, one text instead of a list, lengths that differ, or a negative seed.
        """
        if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
            given = repr(prompts) if isinstance(prompts, str) else len(prompts)
            raise InputError(
                f"store: expected a list of prompts and as many seeds, got {given} and {len(seeds)}."
                " Use sampling.grid(prompts, seeds) for every prompt with every seed."
            )
        if negative := [seed for seed in seeds if seed < 0]:
            raise InputError(f"store: expected seeds from 0 on, got {negative[0]!r}.")
        settings = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
        return cls(
            precision=str(backbone_of(pipe).dtype).removeprefix("torch."),
            model=pipeline_digest(pipe),
            edit=edit,
            scheduler=_plain({"name": type(pipe.scheduler).__name__, **settings}),
            steps=sampler.steps,
            guidance_scale=float(sampler.guidance_scale),
            negative_prompt=sampler.negative_prompt,
            images=tuple((prompt, int(seed)) for prompt, seed in zip(prompts, seeds, strict=True)),
        )

    def sampler(self, batch_size: int) -> SamplingSettings:
        """Return how the images are to be made."""
        return SamplingSettings(
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            batch_size=batch_size,
            negative_prompt=self.negative_prompt,
        )

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that are the same for the same request, and for no other."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Give the fields as plain data, with the file of each row."""
        images = [
            {"file": self.file(row), "prompt": prompt, "seed": seed} for row, (prompt, seed) in enumerate(self.images)
        ]
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "images": images}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Return the manifest whose `as_json` gave `data`.

        Raises:
            KeyError: A field is missing.
        """
        images = tuple((row["prompt"], row["seed"]) for row in data["images"])
        return cls(**{item.name: data[item.name] for item in fields(cls) if item.name != "images"}, images=images)

    def file(self, row: int) -> str:
        """Return the file name of a row: for people its prompt, too."""
        prompt, seed = self.images[row]
        return f"{row:06d}-{slug(prompt)}-{seed}.png"

    def difference(self, other: "Manifest", but: Sequence[str] = ()) -> str:
        """Return the first difference in words, this one's value first; "" if there is none.

        Args:
            other: The one to compare with.
            but: Fields besides the images that do not count.
        """
        for name in (item.name for item in fields(self) if item.name not in (*but, "images")):
            if getattr(self, name) != getattr(other, name):
                return f"{name} {getattr(self, name)!r} against {getattr(other, name)!r}"
        if len(self.images) != len(other.images):
            return f"{len(self.images)} images against {len(other.images)}"
        rows = [row for row, (one, two) in enumerate(zip(self.images, other.images, strict=True)) if one != two]
        return f"row {rows[0]} {self.images[rows[0]]!r} against {other.images[rows[0]]!r}" if rows else ""


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """A folder of images, read row by row: memory does not grow with their number.

    Attributes:
        folder: Where they are.
        manifest: What they are.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> "ImageStore":
        """Return the store in a folder, filled or not.

        Raises:
            InputError: There is no manifest, or none that can be read.
        """
        path = Path(folder) / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise InputError(
                    f"{path}: expected format {FORMAT!r}, got {data['format']!r}. Generate the images anew."
                )
            return cls(folder=Path(folder), manifest=Manifest.from_json(data))
        except OSError as error:
            raise InputError(f"{path}: expected a manifest, got {error.strerror!r}. Generate the images.") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: expected a manifest, got something else ({error}).") from None

    def __len__(self) -> int:
        return len(self.manifest.images)

    def __getitem__(self, row: int) -> Image.Image:
        """Return the image of a row, in RGB.

        Raises:
            InputError: It is missing or damaged, or it was made for another manifest.
        """
        if not self._holds(row):
            raise InputError(f"{self.path(row)}: expected an image, got none that is whole. Generate it first.")
        with Image.open(self.path(row)) as image:
            return image.convert("RGB")

    def batches(self, size: int) -> Iterator[list[Image.Image]]:
        """Give all images in order, `size` at a time; for errors see `__getitem__`."""
        for start in range(0, len(self), size):
            yield [self[row] for row in range(start, min(start + size, len(self)))]

    def path(self, row: int) -> Path:
        """Return the file of a row."""
        return self.folder / self.manifest.file(row)

    def missing(self) -> list[int]:
        """Return the rows that have no whole image yet.

        Raises:
            InputError: The folder holds a file that the manifest does not know, or an image made for another one.
        """
        known = {MANIFEST, *(self.manifest.file(row) for row in range(len(self)))}
        strangers = sorted(
            entry.name for entry in self.folder.iterdir() if entry.name not in known and not entry.name.startswith(".")
        )
        if strangers:
            raise InputError(
                f"{self.folder}: expected the files of its manifest only, got {strangers[0]!r}"
                f"{f' and {len(strangers) - 1} more' if len(strangers) > 1 else ''}. Move what does not belong here."
            )
        return [row for row in range(len(self)) if not self._holds(row)]

    def _holds(self, row: int) -> bool:
        """Say whether a row's file is there and whole; decoding it is left to who reads it."""
        path = self.path(row)
        try:
            with path.open("rb") as file, Image.open(file) as image:
                made_for = image.info.get("manifest")
                file.seek(-len(_PNG_END), 2)
                if file.read() != _PNG_END:
                    return False
        except OSError:  # not there, or no image that PIL knows
            return False
        if made_for != self.manifest.id:
            raise InputError(
                f"{path}: expected an image made for this manifest ({self.manifest.id}), got one for {made_for!r}."
                " Delete it or choose another folder."
            )
        return True


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: str | Path,
    *,
    sampler: SamplingSettings | None = None,
    edit: str = "",
    on_progress: OnProgress | None = None,
) -> ImageStore:
    """Return a folder filled with one image for each pair of a prompt and a seed; see `fill`.

    Args:
        pipe: A loaded diffusers pipeline on this process's device, with whatever is in force on it.
        prompts: One for each image.
        seeds: As many; any integer from 0 on is a seed.
        folder: Where to; made if it is not there.
        sampler: How they are made; the default one where None.
        edit: Id of what is in force on the pipeline, "" for nothing. It tells apart what the weights do not show.
        on_progress: Receives the number of images that are there.

    Raises:
        InputError: Prompts and seeds that cannot be used, or a folder that cannot be filled.
    """
    sampler = sampler or SamplingSettings()
    store = ImageStore(folder=Path(folder), manifest=Manifest.of(pipe, prompts, seeds, sampler, edit))
    return fill(pipe, store, batch_size=sampler.batch_size, on_progress=on_progress)


def fill(pipe: Any, store: ImageStore, *, batch_size: int, on_progress: OnProgress | None = None) -> ImageStore:
    """Make the images of a store that are missing, and return it; what is there already is kept.

    The noise of each image comes from its own CPU generator, see `erasure.sampling.sample`. Batches are fixed by the
    rows, so the same images are made together whatever was interrupted and however many processes share the work:
    under `accelerate launch` each takes every n-th batch, and all return when the folder is full. Only a batch that was
    cut short while its files were written is finished in a smaller one.

    Args:
        pipe: A loaded diffusers pipeline on this process's device, as it was when the manifest was taken.
        store: What to make, and where; the folder is made if it is not there.
        batch_size: Images made together.
        on_progress: Receives the number of images that are there: those that were before, then each batch that this
            process has made, in the end the images that others made.

    Raises:
        InputError: The folder cannot be written, holds other images or has a manifest that asks for something else;
            or another process did not make its images.
    """
    from accelerate import PartialState

    processes, manifest = PartialState(), store.manifest
    origin = provenance(device=str(backbone_of(pipe).device))
    made_with = {
        **{key: origin[key] for key in ("versions", "device", "threads")},
        "batch_size": batch_size,
        "processes": processes.num_processes,
    }
    _begin(store, made_with, write=processes.is_main_process)
    processes.wait_for_everyone()
    _begin(store, made_with, write=False)
    there = len(store) - len(store.missing())  # which refuses what does not belong before any image is made
    processes.wait_for_everyone()

    count = ProgressCounter(on_progress, len(store), "images")
    count.add(there)
    own = range(processes.process_index * batch_size, len(store), processes.num_processes * batch_size)
    batches = (
        [row for row in range(start, min(start + batch_size, len(store))) if not store._holds(row)] for start in own
    )
    files = ([(store.path(row), manifest.images[row]) for row in batch] for batch in batches if batch)
    facts = {"manifest": manifest.id, "made_with": json.dumps(made_with, sort_keys=True)}
    make_files(pipe, manifest.sampler(batch_size), files, facts, count)
    processes.wait_for_everyone()
    if missing := store.missing():
        raise InputError(f"{store.folder}: expected all images, got none for row {missing[0]}. Generate again.")
    count.add(len(store) - count.done)
    return store


def check_paired(one: ImageStore, other: ImageStore, *, same_prompts: bool = True) -> None:
    """Check that row i of two stores is the same question to two models, sampled alike.

    The models, their edits and their negative prompts may differ, nothing else.

    Args:
        one: Images of one model.
        other: Images of the other.
        same_prompts: Whether the prompts must be equal; for an attack, which changes them, the seeds alone are.

    Raises:
        InputError: They are not paired; the first difference is named.
    """
    left, right = one.manifest, other.manifest
    if not same_prompts:
        left, right = (replace(it, images=tuple(("", seed) for _, seed in it.images)) for it in (left, right))
    difference = left.difference(right, but=("model", "edit", "negative_prompt"))
    if difference:
        raise InputError(
            f"images of {str(one.folder)!r} and {str(other.folder)!r}: expected the same prompts, seeds and sampler,"
            f" got {difference}. Generate both from one list."
        )


def _begin(store: ImageStore, made_with: Mapping[str, object], *, write: bool) -> None:
    """Compare the manifest of a folder with what is asked for; where there is none, write it."""
    path = store.folder / MANIFEST
    if not path.exists():
        if write:
            make_folder(store.folder)
            content = {"format": FORMAT, "id": store.manifest.id, "made_with": made_with, **store.manifest.as_json()}
            write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        return
    if difference := ImageStore.open(store.folder).manifest.difference(store.manifest):
        raise InputError(
            f"{path}: expected the manifest of what is asked for, got {difference}."
            " Choose another folder, or ask for what this one holds."
        )


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data as JSON would give it back; what JSON has no word for becomes text."""
    return json.loads(json.dumps(data, default=str))
