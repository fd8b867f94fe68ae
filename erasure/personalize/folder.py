"""Personalised models on disk: the learned edit, the base model and the images of each instance.

`load_model` takes such a folder as it takes a model: it loads the base and merges the edit of the folder into it.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from diffusers import DiffusionPipeline
from PIL import Image, UnidentifiedImageError
from pydantic import Field, TypeAdapter
from pydantic_core import from_json
from typing_extensions import TypedDict

from ..edits import WeightEdit
from ..errors import InputError
from ..io.files import make_folder, write_whole
from ..io.text import one_line
from ..training.draws.augmentation import squared
from .class_diffusion import FEWEST, Instance

EDIT = "edit.safetensors"
PERSONALIZED = "personalization.json"
"""Record in the folder of a personalised model."""
_FORMAT = "erasure-personalization/1"
_KEPT_SIDE = 512  # pixels; largest side of the images kept for comparison
_MOST_PIXELS = 200_000_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """One instance of a personalised model.

    Attributes:
        token: Word of the instance.
        class_word: Class of the instance.
    """

    token: str
    class_word: str

    @property
    def phrase(self) -> str:
        """Phrase for the instance in a prompt: the new word and the class."""
        return f"{self.token} {self.class_word}"


class _Record(TypedDict):
    """Keys of the record of a personalised model."""

    format: str
    base: str
    sha256: str
    instances: Annotated[list[Learned], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Personalized:
    """Folder of a personalised model.

    Attributes:
        folder: Path of the folder.
        base: Name or path of the base model, for `load_model`.
        instances: Learned instances.
    """

    folder: Path
    base: str
    instances: tuple[Learned, ...]

    @property
    def edit(self) -> WeightEdit:
        """Learned edit of the base model."""
        return WeightEdit.load(self.folder / EDIT)

    def images(self, token: str) -> list[Image.Image]:
        """Return the images that an instance was learned from, as they were kept."""
        number = [instance.token for instance in self.instances].index(token) + 1
        return [_opened(path) for path in sorted((self.folder / "pictures").glob(f"{number}-*.png"))]

    @classmethod
    def open(cls, folder: Path) -> "Personalized":
        """Open the folder of a personalised model.

        Raises:
            InputError: The folder holds no personalised model, or its edit was changed.
        """
        try:
            data = from_json((folder / PERSONALIZED).read_bytes())
            TypeAdapter(_Record).validate_python(data)
            sha256 = _sha256(folder / EDIT)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder}: expected a folder written by `erasure personalize`, got no readable {PERSONALIZED}"
                f" ({one_line(str(error))}). Learn it again."
            ) from None
        if data["format"] != _FORMAT:
            raise InputError(f"{folder / PERSONALIZED}: expected the format {_FORMAT}, got {data['format']!r}.")
        if sha256 != data["sha256"]:
            raise InputError(f"{folder / EDIT}: expected the file that was learned, got another. Learn it again.")
        instances = tuple(Learned(**instance) for instance in data["instances"])
        return cls(folder=folder, base=data["base"], instances=instances)

    @classmethod
    def write(cls, folder: Path, edit: WeightEdit, base: str, instances: Sequence[Instance]) -> "Personalized":
        """Write the learned edit and the images of its instances; the record comes last.

        Raises:
            InputError: The folder cannot be written.
        """
        make_folder(folder / "pictures")
        for number, instance in enumerate(instances, start=1):
            for image_number, image in enumerate(instance.images, start=1):
                kept = squared(image)
                kept.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
                buffer = io.BytesIO()
                kept.save(buffer, "PNG")
                write_whole(folder / "pictures" / f"{number}-{image_number:03}.png", buffer.getvalue())
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
    personalized = Personalized.open(folder)
    pipe = load(personalized.base)
    personalized.edit.merge_into(pipe)
    return pipe


def read_images(folder: Path) -> list[Image.Image]:
    """Return the images of a folder in the order of their names, as RGB, upright.

    Raises:
        InputError: There is no such folder, it holds fewer than two images, or a file that is named as an image is
            none.
    """
    if not folder.is_dir():
        raise InputError(f"--images: expected a folder of images, got {str(folder)!r}. Check the path.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    images = [_opened(path) for path in paths]
    if len(images) < FEWEST:
        raise InputError(
            f"--images: expected at least {FEWEST} images in {str(folder)!r}, got {len(images)}."
            f" Known endings: {', '.join(_SUFFIXES)}."
        )
    return images


def _opened(path: Path) -> Image.Image:
    from PIL import ImageOps

    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise InputError(f"{path}: expected at most {_MOST_PIXELS // 10**6} megapixels. Make it smaller.")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected an image, got a file that cannot be read as one. Take it out.") from None


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise InputError(f"{path}: expected a file, got none. Learn it again.") from None
