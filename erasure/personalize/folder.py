"""A personalised model on disk: what was learned, on which model, from which pictures.

`load_model` takes such a folder as it takes a model: it loads the base and teaches it what the folder holds.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image, UnidentifiedImageError

from ..edits import WeightEdit
from ..errors import InputError
from ..io.files import make_folder, write_whole
from .augmentation import squared
from .class_diffusion import FEWEST, Instance

EDIT = "edit.safetensors"
PERSONALIZED = "personalization.json"
"""Record in the folder of a personalised model."""
_FORMAT = "erasure-personalization/1"
_KEPT_SIDE = 512  # pixels of the pictures that are kept to compare with
_MOST_PIXELS = 200_000_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """One instance of a personalised model.

    Attributes:
        token: Its word.
        class_word: What it is one of.
    """

    token: str
    class_word: str

    @property
    def phrase(self) -> str:
        """What a prompt calls it."""
        return f"{self.token} {self.class_word}"


@dataclass(frozen=True, kw_only=True)
class Personalized:
    """A folder of what was learned.

    Attributes:
        folder: Where it is.
        base: What loads the model that was personalised.
        instances: What was learned.
    """

    folder: Path
    base: str
    instances: tuple[Learned, ...]

    @property
    def edit(self) -> WeightEdit:
        """What was learned, as a change of the base."""
        return WeightEdit.load(self.folder / EDIT)

    def pictures(self, token: str) -> list[Image.Image]:
        """Return the pictures that an instance was learned from, as they were kept."""
        at = [instance.token for instance in self.instances].index(token)
        return [_opened(path) for path in sorted((self.folder / "pictures").glob(f"{at + 1}-*.png"))]

    @classmethod
    def open(cls, folder: Path) -> "Personalized":
        """Return what a folder holds.

        Raises:
            InputError: It is none of these, or its edit was changed.
        """
        try:
            data = json.loads((folder / PERSONALIZED).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(
                f"{folder}: expected what `erasure personalize` writes, got no readable {PERSONALIZED} ({error})."
            ) from None
        if data.get("format") != _FORMAT:
            raise InputError(f"{folder / PERSONALIZED}: expected the format {_FORMAT}, got {data.get('format')!r}.")
        if _sha256(folder / EDIT) != data["sha256"]:
            raise InputError(f"{folder / EDIT}: expected the file that was learned, got another. Learn it again.")
        instances = tuple(Learned(**instance) for instance in data["instances"])
        return cls(folder=folder, base=data["base"], instances=instances)

    @classmethod
    def write(cls, folder: Path, edit: WeightEdit, base: str, instances: Sequence[Instance]) -> "Personalized":
        """Keep what was learned with the pictures that it was learned from; the record comes last.

        Raises:
            InputError: The folder cannot be written.
        """
        make_folder(folder / "pictures")
        for at, instance in enumerate(instances):
            for number, picture in enumerate(instance.pictures):
                kept = squared(picture)
                kept.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
                buffer = io.BytesIO()
                kept.save(buffer, "PNG")
                write_whole(folder / "pictures" / f"{at + 1}-{number + 1:03}.png", buffer.getvalue())
        edit.save(folder / EDIT)
        learned = tuple(Learned(token=each.token, class_word=each.class_word) for each in instances)
        record = {
            "format": _FORMAT,
            "base": base,
            "instances": [asdict(instance) for instance in learned],
            "sha256": _sha256(folder / EDIT),
        }
        write_whole(folder / PERSONALIZED, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        return cls(folder=folder, base=base, instances=learned)


def load_personalized(folder: Path, load: Callable[[str], DiffusionPipeline]) -> DiffusionPipeline:
    """Return the pipeline of a folder: its base, which `load` loads by name, with the learned instances."""
    found = Personalized.open(folder)
    pipe = load(found.base)
    found.edit.merge_into(pipe)
    return pipe


def read_pictures(folder: Path) -> list[Image.Image]:
    """Return the pictures of a folder in the order of their names, as RGB, upright.

    Raises:
        InputError: There is no such folder, it holds fewer than two pictures, or a file that is named as a picture is
            none.
    """
    if not folder.is_dir():
        raise InputError(f"--images: expected a folder of pictures, got {str(folder)!r}. Check the path.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    pictures = [_opened(path) for path in paths]
    if len(pictures) < FEWEST:
        raise InputError(
            f"--images: expected at least {FEWEST} pictures in {str(folder)!r}, got {len(pictures)}."
            f" Known endings: {', '.join(_SUFFIXES)}."
        )
    return pictures


def _opened(path: Path) -> Image.Image:
    from PIL import ImageOps

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise InputError(f"{path}: expected at most {_MOST_PIXELS // 10**6} megapixels. Make it smaller.")
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected a picture, got a file that cannot be read as one. Take it out.") from None


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise InputError(f"{path}: expected a file, got none. Learn it again.") from None
