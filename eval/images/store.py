"""The image store: images of prompts and seeds in a folder, sampled once, by one process or by several.

A closed store has a manifest, which states all that decides the images, and a PNG file a row. It is filled by `fill`,
which continues after a kill. Another manifest, a file that the manifest does not list, and an image sampled for another
manifest are errors, so measurements never mix images. An open store holds the images of one state of a model and grows
with the requests. Files whose name starts with a dot are ignored: a killed write leaves one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image
from pydantic_core import from_json

from erasure.backbones import backbone_of
from erasure.errors import InputError, reason
from erasure.io.files import make_folder, write_whole
from erasure.io.processes import by_first, meet, share, state, wait
from erasure.io.text import one_line, shortened
from erasure.progress import OnProgress, ProgressCounter
from erasure.provenance import provenance
from erasure.sampling import Pair, SamplingSettings

from .manifest import FORMAT, MANIFEST, Manifest, StateImages
from .png import facts_of, sample_to_files


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """A folder of images, read row by row: memory does not grow with their number.

    Attributes:
        folder: Folder of the files.
        manifest: Images of the folder.
    """

    folder: Path
    manifest: Manifest | StateImages

    @classmethod
    def open(cls, folder: str | Path) -> "ImageStore":
        """Return the closed store in a folder, filled or not.

        Raises:
            InputError: There is no manifest, or none that can be read.
        """
        path = Path(folder) / MANIFEST
        try:
            data = from_json(path.read_bytes())
            if data["format"] != FORMAT:
                raise InputError(
                    f"{path}: expected format {FORMAT!r}, got {data['format']!r}. Generate the images anew."
                )
            return cls(folder=Path(folder), manifest=Manifest.from_json(data))
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{path}: expected a manifest, got {error.strerror!r}. Generate the images.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: expected a manifest, got something else ({shortened(one_line(str(error)))})."
                " Generate the images anew."
            ) from None

    @classmethod
    def of_state(cls, folder: Path, state: str, pairs: Sequence[Pair], settings: SamplingSettings) -> "ImageStore":
        """Return the open store of some images of a state.

        Args:
            folder: Folder of all states.
            state: Name of the state, and of its folder.
            pairs: Prompt and seed of each image.
            settings: Sampling settings; images sampled otherwise have other files.
        """
        return cls(folder=folder / state, manifest=StateImages(state=state, settings=settings, images=tuple(pairs)))

    def __len__(self) -> int:
        return len(self.manifest.images)

    def __getitem__(self, row: int) -> Image.Image:
        """Return the image of a row, in RGB.

        Raises:
            InputError: It is missing or damaged, or it was sampled for another manifest.
        """
        if not self.holds(row):
            raise InputError(f"{self.path(row)}: expected an image, got none that is whole. Generate it first.")
        try:
            with Image.open(self.path(row)) as image:
                return image.convert("RGB")
        except OSError as error:
            got = f"a damaged file ({reason(error)})"
            raise InputError(f"{self.path(row)}: expected an image, got {got}. Delete it, and sample again.") from None

    def images(self) -> list[Image.Image]:
        """Return all images in order; for errors see `__getitem__`."""
        return [self[row] for row in range(len(self))]

    def batches(self, size: int) -> Iterator[list[Image.Image]]:
        """Yield all images in order, `size` at a time; for errors see `__getitem__`."""
        for start in range(0, len(self), size):
            yield [self[row] for row in range(start, min(start + size, len(self)))]

    def path(self, row: int) -> Path:
        """Return the file of a row."""
        return self.folder / self.manifest.file(row)

    def missing(self) -> list[int]:
        """Return the rows without a complete image; of rows with one file, the first.

        Raises:
            InputError: A closed folder holds a file that its manifest does not list, or an image sampled for another
                manifest.
        """
        files = {self.manifest.file(row): row for row in reversed(range(len(self)))}
        if isinstance(self.manifest, Manifest):
            self._check_files({MANIFEST, *files})
        return [row for row in sorted(files.values()) if not self.holds(row)]

    def _check_files(self, known: set[str]) -> None:
        names = (entry.name for entry in self.folder.iterdir())
        if strangers := sorted(name for name in names if name not in known and not name.startswith(".")):
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise InputError(
                f"{self.folder}: expected the files of its manifest only, got {strangers[0]!r}{more}."
                " Move what does not belong here."
            )

    def holds(self, row: int) -> bool:
        """Return True if a row's file is complete; it is not decoded.

        Raises:
            InputError: The image was sampled for another manifest.
        """
        facts = facts_of(self.path(row))
        if facts is None:
            return False
        if isinstance(self.manifest, Manifest) and facts.get("manifest") != self.manifest.id:
            raise InputError(
                f"{self.path(row)}: expected an image made for this manifest ({self.manifest.id}), got one for"
                f" {facts.get('manifest')!r}. Delete it or choose another folder."
            )
        return True


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: str | Path,
    *,
    sampler: SamplingSettings | None = None,
    edit: str = "",
    on_progress: OnProgress | None = None,
) -> ImageStore:
    """Return a closed store filled with one image for each pair of a prompt and a seed; see `fill`.

    Args:
        pipe: Loaded diffusers pipeline on this process's device, with the edit applied.
        prompts: Prompt of each image.
        seeds: Seed of each image, >= 0.
        folder: Folder of the store; created if missing.
        sampler: Sampling settings; default: `SamplingSettings()`.
        edit: Id of the edit or guidance, "" for none; it distinguishes changes that the weights do not show.
        on_progress: Receives the number of images in the store.

    Raises:
        InputError: Prompts and seeds that cannot be used, or a folder that cannot be filled.
    """
    sampler = sampler or SamplingSettings()
    store = ImageStore(folder=Path(folder), manifest=Manifest.of(pipe, prompts, seeds, sampler, edit))
    return fill(pipe, store, batch_size=sampler.batch_size, on_progress=on_progress)


def fill(
    pipe: DiffusionPipeline, store: ImageStore, *, batch_size: int = 16, on_progress: OnProgress | None = None
) -> ImageStore:
    """Sample the missing images of a store and return it; existing images are kept.

    The noise of each image comes from its own CPU generator, see `erasure.sampling.sample`. The batches of a closed
    store are fixed by its rows, so the same images are sampled together after interruptions and with any number of
    processes: under `accelerate launch` each process takes every n-th batch, and all return when the folder is full.
    Only a batch that was cut while its files were written is finished in a smaller one. An open store is filled in
    batches of its settings, by one process, or by those that work together (`erasure.io.processes`).

    Args:
        pipe: Loaded diffusers pipeline on this process's device, in the state of the manifest.
        store: Store to fill; its folder is created if missing.
        batch_size: Number of images sampled together in a closed store.
        on_progress: Receives the number of images done; in a closed store those that existed count, and in the end
            those of other processes.

    Raises:
        InputError: The folder cannot be written, holds other images or has another manifest, or another process did not
            sample its images.
    """
    manifest = store.manifest
    if isinstance(manifest, StateImages):
        missing, settings = by_first(store.missing), manifest.settings
        make_folder(store.folder)
        count = ProgressCounter(on_progress, len(missing), "images")
        starts = range(0, len(missing), settings.batch_size)[share()]
        batches = (missing[start : start + settings.batch_size] for start in starts)
        facts = {"state": manifest.state, **settings.as_settings()}
        sample_to_files(pipe, settings, _files(store, batches), facts, count)
        wait()
        count.add(len(missing) - count.done)
        return store
    return _fill_closed(pipe, store, manifest, batch_size, on_progress)


def _fill_closed(
    pipe: DiffusionPipeline, store: ImageStore, manifest: Manifest, batch_size: int, on_progress: OnProgress | None
) -> ImageStore:
    processes = state()
    origin = provenance(device=str(backbone_of(pipe).device))
    made_with = {
        **{key: origin[key] for key in ("versions", "device", "threads")},
        "batch_size": batch_size,
        "processes": processes.num_processes,
    }
    _begin(store, manifest, made_with, write=processes.is_main_process)
    meet()
    _begin(store, manifest, made_with, write=False)
    present = len(store) - len(store.missing())  # refuses foreign files before any image is sampled
    meet()

    count = ProgressCounter(on_progress, len(store), "images")
    count.add(present)
    starts = range(processes.process_index * batch_size, len(store), processes.num_processes * batch_size)
    batches = (
        [row for row in range(start, min(start + batch_size, len(store))) if not store.holds(row)] for start in starts
    )
    facts = {**manifest.facts, "made_with": json.dumps(made_with, sort_keys=True)}
    sample_to_files(pipe, manifest.sampling(batch_size), _files(store, filter(None, batches)), facts, count)
    meet()
    if missing := store.missing():
        raise InputError(f"{store.folder}: expected all images, got none for row {missing[0]}. Generate again.")
    count.add(len(store) - count.done)
    return store


def _files(store: ImageStore, batches: Iterator[list[int]]) -> Iterator[list[tuple[Path, Pair]]]:
    return ([(store.path(row), store.manifest.images[row]) for row in batch] for batch in batches)


def check_paired(one: ImageStore, other: ImageStore, *, same_prompts: bool = True) -> None:
    """Check that row i of two closed stores has the same prompt and seed, sampled alike.

    The models, their edits and their negative prompts may differ, nothing else.

    Args:
        one: Images of one model.
        other: Images of the other model.
        same_prompts: Whether the prompts must be equal; attacks change them, and the seeds alone must be equal.

    Raises:
        InputError: They are not paired; the first difference is named.
    """
    left, right = closed(one), closed(other)
    if not same_prompts:
        left, right = (replace(it, images=tuple(("", seed) for _, seed in it.images)) for it in (left, right))
    difference = left.difference(right, but=("model", "edit", "negative_prompt"))
    if difference:
        raise InputError(
            f"images of {str(one.folder)!r} and {str(other.folder)!r}: expected the same prompts, seeds and sampler,"
            f" got {difference}. Generate both from one list."
        )


def closed(store: ImageStore) -> Manifest:
    """Return the manifest of a closed store.

    Raises:
        InputError: The store is open.
    """
    if not isinstance(store.manifest, Manifest):
        raise InputError(f"{store.folder}: expected a store with a manifest, got the images of a state.")
    return store.manifest


def _begin(store: ImageStore, manifest: Manifest, made_with: Mapping[str, object], *, write: bool) -> None:
    """Compare the manifest of a folder with the store's; write it where there is none."""
    path = store.folder / MANIFEST
    if not path.exists():
        if write:
            make_folder(store.folder)
            content = {"format": FORMAT, "id": manifest.id, "made_with": made_with, **manifest.as_json()}
            write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        return
    if difference := closed(ImageStore.open(store.folder)).difference(manifest):
        raise InputError(
            f"{path}: expected the manifest of what is asked for, got {difference}."
            " Choose another folder, or ask for what this one holds."
        )
