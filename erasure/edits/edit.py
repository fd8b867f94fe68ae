"""The protocol of all edits: apply, undo, switch, save, load."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, TypeVar, cast

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType] - untyped dicts
from huggingface_hub.errors import HFValidationError

from ..arguments import checks_arguments
from ..backbones import backbone_of
from ..errors import BaseMismatchError, ErasureError, InputError, reason
from ..io.files import make_folder
from ..io.push import check_push, push
from .metadata import EditMetadata, named_model
from .serialization import EditFile
from .switch import Switch

FILE = "edit.safetensors"
"""Name of the file in a folder or repository of one edit."""

AnyEdit = TypeVar("AnyEdit", bound="Edit")


@checks_arguments
class Edit(ABC):
    """A change of a model as a value: the result of a fit, which changes nothing by itself.

    Attributes:
        formats: File formats of this kind of edit, the one that is written first.
        metadata: Origin of the edit.
    """

    formats: ClassVar[tuple[str, ...]] = ()
    metadata: EditMetadata
    _kinds: ClassVar[dict[str, type["Edit"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Edit._kinds.update(dict.fromkeys(cls.formats, cls))

    @classmethod
    def known_formats(cls) -> tuple[str, ...]:
        """Return the file formats of all kinds of edits."""
        return tuple(cls._kinds)

    @abstractmethod
    def applied_to(self, pipe: DiffusionPipeline, *, check: bool = True) -> AbstractContextManager[DiffusionPipeline]:
        """Apply the edit for the length of a `with`; on exit the pipeline is as it was, bit for bit.

        Args:
            pipe: A diffusers pipeline.
            check: Whether the pipeline must be the model that the edit was made for.

        Raises:
            BaseMismatchError: The edit was made for another model.
            InputError: The edit does not fit the model.
        """

    @abstractmethod
    def switched(self, pipe: DiffusionPipeline, *, check: bool = True) -> AbstractContextManager[Switch]:
        """Yield a switch that turns the edit on and off as often as needed; it is off at first.

        On exit the pipeline is as it was, bit for bit. For arguments and errors see `applied_to`.
        """

    @abstractmethod
    def with_metadata(self, metadata: EditMetadata) -> "Edit":
        """Return the same edit with other metadata."""

    @abstractmethod
    def as_file(self, shared: Path | None = None) -> EditFile:
        """Return the contents of the edit's file.

        Args:
            shared: See `save`.
        """

    @classmethod
    @abstractmethod
    def of_file(cls, file: EditFile, shared: Path) -> "Edit":
        """Return the edit whose `as_file` gave `file`.

        Args:
            file: The contents.
            shared: Folder of the rows that it shares with other edits.

        Raises:
            InputError: Shared rows are missing or were changed, or a later version of this library wrote the file.
        """

    def check_base(self, pipe: DiffusionPipeline) -> None:
        """Raise BaseMismatchError if the edit was made for another model; precision does not count."""
        fingerprint = backbone_of(pipe).fingerprint()
        if fingerprint != self.metadata.base_fingerprint:
            raise BaseMismatchError(
                f"edit: expected the model that it was made for, {self.metadata.base},"
                f" got {named_model(str(pipe.name_or_path), fingerprint)}. Load that model."
            )

    def save(self, path: str | Path, *, shared: Path | None = None) -> Path:
        """Write the edit to one safetensors file, whole or not at all, and return its path.

        Args:
            path: The file.
            shared: Folder for rows that many edits have in common, each stored there once; None writes all to the file.

        Raises:
            InputError: The path cannot be written.
        """
        path = Path(path)
        self.as_file(shared).write(path)
        return path

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the edit to a folder, which is made if needed, as `edit.safetensors`; return the path of the folder.

        Raises:
            InputError: The folder cannot be written.
        """
        folder = Path(folder)
        make_folder(folder)
        self.save(folder / FILE)
        return folder

    @classmethod
    def from_pretrained(cls: type[AnyEdit], source: str | Path) -> AnyEdit:
        """Return the edit that `save_pretrained` wrote or `push_to_hub` uploaded; nothing in the file is executed.

        Args:
            source: The folder, the file itself, or a Hub id "owner/name".

        Raises:
            InputError: There is no edit of this kind, or the Hub cannot be reached.
        """
        path = Path(source)
        if path.is_dir():
            return cls.load(path / FILE)
        if path.is_file():
            return cls.load(path)
        try:
            return cls.load(hf_hub_download(str(source), FILE))
        except (HFValidationError, OSError) as error:
            raise InputError(
                f"edit: expected a folder, a file or a Hub id with {FILE}, got {str(source)!r}"
                f" ({type(error).__name__}). Check the path, or the name and the network."
            ) from None

    def push_to_hub(
        self, repo: str, *, private: bool = False, message: str = "Upload an edit", token: str | None = None
    ) -> str:
        """Upload the edit to a model repository, as one commit, and return the address of the commit.

        Args:
            repo: "USER/NAME"; created if missing.
            private: Whether the repository is private.
            message: Message of the commit.
            token: Token of the user; None takes that of the environment (HF_TOKEN) or of the login.

        Raises:
            InputError: The Hub refuses the upload, or cannot be reached.
        """
        check_push(repo, token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push(Path(folder), repo, private=private, message=message, token=token).url

    @classmethod
    def load(cls: type[AnyEdit], path: str | Path, *, shared: Path | None = None) -> AnyEdit:
        """Return the edit of a file that `save` wrote; nothing in the file is executed.

        Args:
            path: The file.
            shared: Folder of the rows that it shares with other edits; None takes `rows/` beside the folder of the
                file, the place in a ledger.

        Raises:
            InputError: There is no such file, it is not an edit of this kind, or shared rows are missing or changed.
        """
        path = Path(path)
        file = EditFile.read(path)
        kinds = {name: kind for name, kind in Edit._kinds.items() if issubclass(kind, cls)}
        if file.format not in kinds:
            formats = " or ".join(dict.fromkeys(kind.formats[0] for kind in kinds.values()))
            raise InputError(f"{path}: expected an edit of the format {formats}, got {file.format!r}. Check the file.")
        rows = shared or path.parent.parent / "rows"
        try:
            return cast("AnyEdit", kinds[file.format].of_file(file, rows))
        except ErasureError as error:
            raise InputError(str(error) if str(error).startswith(str(rows)) else f"{path}: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            # A header can be damaged in more ways than can be named.
            raise InputError(
                f"{path}: expected the header of an edit, got a damaged one ({type(error).__name__}: {reason(error)})."
                " Copy or save it again."
            ) from error
