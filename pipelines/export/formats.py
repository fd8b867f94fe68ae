"""The standing removals of a ledger in the formats that other programs read."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, get_args

from diffusers import DiffusionPipeline
from typing_extensions import TypedDict

from erasure.backbones import backbone_of
from erasure.edits import Lora, SamplingEdit, WeightEdit, weights_of
from erasure.edits.sampling_edit import fitted_tensors, recorded_settings
from erasure.errors import InputError, unknown_name
from erasure.io.files import write_whole
from erasure.io.json_files import record_if_whole
from erasure.io.tensor_files import write_tensors
from erasure.ledger import Ledger
from erasure.runs.removal import check_cpu

from .. import a_star, guided
from .checkpoint import checkpoint_tensors
from .folders import copy_configs, files_of, write_edited
from .hub import self_contained
from .kohya import kohya_tensors, rank_of
from .loaded_back import check_loader, check_loads
from .marks import check_family, checkpoint_notes, header, kohya_header
from .reopened import check_checkpoint, check_edit, check_folder, check_tensors
from .single_file import check_names, write_single_file

Format = Literal["pipeline", "edit", "lora", "kohya", "checkpoint", "single-file"]
FORMATS: tuple[str, ...] = get_args(Format)
GUIDANCES: Mapping[str, tuple[type, type]] = {
    "a-star": (a_star.StableDiffusionAStarPipeline, a_star.StableDiffusionXLAStarPipeline),
    "adavd": (guided.StableDiffusionAdavdPipeline, guided.StableDiffusionXLAdavdPipeline),
    "attend-and-excite": (guided.StableDiffusionAttendExcitePipeline, guided.StableDiffusionXLAttendExcitePipeline),
    "capsule": (guided.StableDiffusionCapsulePipeline, guided.StableDiffusionXLCapsulePipeline),
    "casteer": (guided.StableDiffusionCasteerPipeline, guided.StableDiffusionXLCasteerPipeline),
    "localised": (guided.StableDiffusionLocalisedPipeline, guided.StableDiffusionXLLocalisedPipeline),
    "negative-prompt": (guided.StableDiffusionNegativePromptPipeline, guided.StableDiffusionXLNegativePromptPipeline),
    "safree": (guided.StableDiffusionSafreePipeline, guided.StableDiffusionXLSafreePipeline),
    "semantic-surgery": (
        guided.StableDiffusionSemanticSurgeryPipeline,
        guided.StableDiffusionXLSemanticSurgeryPipeline,
    ),
    "sld": (guided.StableDiffusionSldPipeline, guided.StableDiffusionXLSldPipeline),
    "spm": (guided.StableDiffusionSpmPipeline, guided.StableDiffusionXLSpmPipeline),
}
"""Guidances by name, with their pipelines for one text encoder and for two."""

_COMPARED = 2  # prompts whose predictions are compared when a file was loaded back
_STREAMED = ("pipeline", "edit", "lora", "single-file")
_WITH_GUIDANCE = ("pipeline", "edit")
"""Formats that can hold a removal during sampling."""
_NAMED_LAYERS = ("kohya", "checkpoint")
"""Formats whose names for layers are those of some families."""
RECORD = "erasure.json"
_RECORD_FORMAT = "erasure-export/1"


class _Removed(TypedDict):
    removed: NotRequired[list[str]]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Format and options of an export.

    Attributes:
        format: Format of the files; see `FORMATS`.
        rank: Largest rank of a layer in "lora" and "kohya"; None keeps all of a low-rank change.
        guidance: Guidance written beside the weights of "pipeline"; None writes that of the removals alone.
        base_file: Single file of the base that "single-file" writes again with the changes.
        link: Whether files of "pipeline" without a changed weight are hard links to those of the base.
    """

    format: str = "pipeline"
    rank: int | None = None
    guidance: str | None = None
    base_file: str | None = None
    link: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown_name("format", self.format, FORMATS)
        if self.rank is not None and self.format not in ("lora", "kohya"):
            raise InputError(f"rank: expected none for the format {self.format}, got {self.rank}. Leave it out.")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank: expected at least 1, got {self.rank}. Leave it out to keep all.")
        if self.base_file is not None and self.format != "single-file":
            raise InputError(f"base_file: expected the format single-file, got {self.format}. Leave it out.")
        if self.link and self.format != "pipeline":
            raise InputError(f"link: expected the format pipeline, got {self.format}. Leave it out.")
        if self.guidance is not None and self.guidance not in GUIDANCES:
            raise unknown_name("guidance to export", self.guidance, GUIDANCES)
        if self.guidance is not None and self.format != "pipeline":
            raise InputError(f"guidance: expected the format pipeline, got {self.format}. It needs the whole model.")

    @property
    def file(self) -> str:
        """File to load in the folder; "" for the folder itself."""
        return _WRITERS[self.format][1]


@dataclass(frozen=True, kw_only=True)
class Written:
    """The result of an export.

    Attributes:
        export: Format and options.
        state: State of the ledger.
        base: Fingerprint of the base.
        notes: Sentences about what is not exact or needs care, for people.
        name: Name of the model in its card; "" without one.
        removed: Targets of the removals.
    """

    export: Export
    state: str
    base: str
    notes: tuple[str, ...] = ()
    name: str = ""
    removed: tuple[str, ...] = ()


def write_export(ledger: Ledger, pipe: DiffusionPipeline, export: Export, folder: Path) -> Written:
    """Write the standing removals into a folder.

    Args:
        ledger: The ledger.
        pipe: Its unedited base, on the CPU or elsewhere.
        export: Format and options.
        folder: An empty one.

    Raises:
        InputError: No removal stands, or the format cannot hold one, or a model of this family.
        ExportError: What was written is not read as it was to be.
        BaseMismatchError: The pipeline is not the ledger's base.
        LedgerError: A file of the ledger is missing or was changed.
    """
    check_standing(ledger)
    check_holds(ledger, export)
    ledger.check_base(backbone_of(pipe).fingerprint(), str(pipe.name_or_path))
    if export.format in _NAMED_LAYERS:
        check_family(pipe, export.format)
    writer, _ = _WRITERS[export.format]
    notes = writer(ledger, pipe, export, folder)
    return Written(
        export=export,
        state=ledger.state(),
        base=ledger.base.fingerprint,
        notes=notes,
        removed=tuple(dict.fromkeys(_targets(ledger))),
    )


def check_low_memory(export: Export, device: str) -> None:
    """Refuse an export that needs the base in memory.

    Raises:
        InputError: By its format, or by its device.
    """
    if export.format not in _STREAMED:
        raise InputError(
            f"--low-memory: expected the format {' or '.join(_STREAMED)}, got {export.format!r}. Leave one of them out."
        )
    check_cpu(device)


def base_file_of(export: Export) -> Path:
    """Return the file of the base that an export in the format single-file changes.

    Raises:
        InputError: There is none.
    """
    if export.base_file is None:
        raise InputError("single-file: expected a file of the base, got none. Name it by --base-file.")
    return Path(export.base_file)


def check_standing(ledger: Ledger) -> None:
    """Raise InputError where there is nothing to export."""
    if not ledger.standing:
        raise InputError(
            f"export: expected a ledger with a removal that stands, got none in {str(ledger.path)!r}."
            " Remove something first."
        )


def check_holds(ledger: Ledger, export: Export) -> None:
    """Refuse a format that cannot hold a removal of the ledger.

    Raises:
        InputError: A removal acts during sampling and the format holds weights alone, or one pipeline cannot hold all.
    """
    edit = ledger.edit()
    if not isinstance(edit, SamplingEdit):
        return
    names = ", ".join(f"{entry.id} by {entry.method}" for entry in ledger.during_sampling)
    if export.format not in _WITH_GUIDANCE:
        raise InputError(
            f"{export.format}: expected removals in the weights alone, got {names}, which act during sampling."
            f" Use --format {' or '.join(_WITH_GUIDANCE)}, or undo them."
        )
    recording = [name for name, kinds in GUIDANCES.items() if hasattr(kinds[0], "recorded")]
    methods = {guidance.name for guidance in edit.guidances}
    if export.guidance is not None:
        methods.add(export.guidance)
    if export.format == "pipeline" and (len(methods) > 1 or not methods <= set(recording)):
        raise InputError(
            f"pipeline: expected guidance by one of {', '.join(recording)}, got {', '.join(sorted(methods))}."
            " Use --format edit, or undo the others."
        )


def write_record(written: Written, folder: Path) -> None:
    """Write a record of the export, with the hash of every file in the folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / RECORD]
    files = {str(path.relative_to(folder)): _sha256(path) for path in paths}
    record = {"format": _RECORD_FORMAT, **asdict(written), "files": files}
    write_whole(folder / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def already_written(ledger: Ledger, export: Export, folder: Path) -> Written | None:
    """Return the export that a folder holds, if it is complete, unchanged and current; else None."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        expected = {"format": _RECORD_FORMAT, "export": asdict(export), "state": ledger.state()}
        if expected != {key: record[key] for key in expected}:
            return None
        if any(_sha256(folder / name) != sha256 for name, sha256 in record["files"].items()):
            return None
        notes = tuple(map(str, record["notes"]))
        return Written(
            export=export,
            state=record["state"],
            base=record["base"],
            notes=notes,
            name=record["name"],
            removed=tuple(record.get("removed", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def removed_from(folder: Path) -> tuple[str, ...]:
    """Return the targets that the record of an export names; none of a folder without one, or with a damaged one."""
    record = record_if_whole(folder / RECORD, _Removed) or {}
    return tuple(record.get("removed", ()))


def _pipeline(ledger: Ledger, pipe: DiffusionPipeline, export: Export, folder: Path) -> tuple[str, ...]:
    edit = ledger.edit()
    with files_of(ledger.base.name, pipe) as files:
        write_edited(weights_of(edit), pipe, files, folder, link=export.link)
        check_folder(weights_of(edit), pipe, files, folder, _compared(ledger)[:1])
    recorded = edit.guidances if isinstance(edit, SamplingEdit) else ()
    method = recorded[0].name if recorded else export.guidance
    if method is None:
        return ()
    kind = _pipeline_class(method, pipe)
    source = self_contained(kind)
    if not recorded:
        write_whole(folder / "pipeline.py", source.encode())
        return ()
    lines = f"\n\n{kind.__name__}.recorded = {tuple(map(recorded_settings, recorded))!r}\n"
    if tensors := fitted_tensors(recorded):
        write_tensors(folder / guided.TENSORS, tensors, {"format": "pt"})
        check_tensors(folder / guided.TENSORS, tensors)
        lines += f"{kind.__name__}.recorded_tensors = {_sha256(folder / guided.TENSORS)!r}\n"
    write_whole(folder / "pipeline.py", f"{source}{lines}".encode())
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["_class_name"] = ["pipeline", kind.__name__]  # so that nobody loads the weights without the guidance
    write_whole(folder / "model_index.json", (json.dumps(index, indent=2) + "\n").encode())
    names = ", ".join(entry.id for entry in ledger.during_sampling)
    return (
        f"The guidance ({names}) is in pipeline.py: load the folder with trust_remote_code=True, which executes it.",
    )


def _pipeline_class(method: str, pipe: DiffusionPipeline) -> type:
    check_family(pipe, method)
    return GUIDANCES[method][backbone_of(pipe).family == "sdxl"]


def _edit(ledger: Ledger, pipe: DiffusionPipeline, export: Export, folder: Path) -> tuple[str, ...]:
    edit = ledger.edit()
    edit.save(folder / export.file)
    check_edit(edit, folder / export.file)
    return ()


def _lora(ledger: Ledger, pipe: DiffusionPipeline, export: Export, folder: Path) -> tuple[str, ...]:
    check_loader(pipe)
    lora = _factors(ledger, pipe, export)
    tensors = {_encoder_named(key): factor for key, factor in lora.state_dict.items()}
    write_tensors(folder / export.file, tensors, header(pipe, "lora"))
    check_loads(pipe, folder / export.file, lora.state_dict, _compared(ledger))
    return _cut(lora)


def _single_file(ledger: Ledger, pipe: DiffusionPipeline, export: Export, folder: Path) -> tuple[str, ...]:
    edit = weights_of(ledger.edit())
    check_names(edit, pipe)
    write_single_file(edit, pipe, base_file_of(export), folder / export.file)
    return ()


def _targets(ledger: Ledger) -> list[str]:
    return [concept.target for entry in ledger.standing for concept in entry.concepts]


def _compared(ledger: Ledger) -> list[str]:
    """Return the removed concepts whose predictions are compared when a file was loaded back."""
    return _targets(ledger)[:_COMPARED]


def _kohya(ledger: Ledger, pipe: DiffusionPipeline, export: Export, folder: Path) -> tuple[str, ...]:
    lora = _factors(ledger, pipe, export)
    metadata = kohya_header(pipe, rank_of(lora.state_dict))
    write_tensors(folder / export.file, kohya_tensors(lora.state_dict, pipe), metadata)
    check_loads(pipe, folder / export.file, lora.state_dict, _compared(ledger), "kohya")
    return _cut(lora)


def _checkpoint(ledger: Ledger, pipe: DiffusionPipeline, export: Export, folder: Path) -> tuple[str, ...]:
    with files_of(ledger.base.name, pipe) as files:
        copy_configs(files, folder / "config")
    with ledger.applied_to(pipe):
        tensors = checkpoint_tensors(pipe)
        write_tensors(folder / export.file, tensors, header(pipe))
        check_checkpoint(pipe, folder / export.file, folder / "config", _compared(ledger)[:1])
        return checkpoint_notes(pipe, tensors)


_WRITERS: Mapping[str, tuple[Callable[[Ledger, Any, Export, Path], tuple[str, ...]], str]] = {
    "pipeline": (_pipeline, ""),
    "edit": (_edit, "edit.safetensors"),
    "lora": (_lora, "pytorch_lora_weights.safetensors"),  # what diffusers looks for in a folder
    "kohya": (_kohya, "kohya_lora.safetensors"),
    "checkpoint": (_checkpoint, "checkpoint.safetensors"),
    "single-file": (_single_file, "model.safetensors"),
}


def _factors(ledger: Ledger, pipe: DiffusionPipeline, export: Export) -> Lora:
    edit = ledger.edit()
    assert isinstance(edit, WeightEdit)  # noqa: S101 - see check_holds
    try:
        return edit.as_lora(pipe, rank=export.rank)
    except InputError as error:
        said = str(error).removeprefix("as_lora: ").replace("Use save or merge_into.", "Use --format pipeline or edit.")
        raise InputError(f"{export.format}: {said}") from None


def _encoder_named(key: str) -> str:
    """Return a factor's name with the part that transformers before 5.6 has in the names of text encoders."""
    part, _, rest = key.partition(".")
    named = not part.startswith("text_encoder") or rest.startswith(("text_model.", "text_projection."))
    return key if named else f"{part}.text_model.{rest}"


def _cut(lora: Lora) -> tuple[str, ...]:
    """Return notes about the difference of factors and edit, beyond the rounding of float32."""
    notes = []
    if lora.left_out:
        some = f"{lora.left_out[0]!r}" + (f" and {len(lora.left_out) - 1} more" if len(lora.left_out) > 1 else "")
        notes.append(f"A LoRA has no place for changes of {some}: they are left out.")
    if lora.relative_error >= 1e-6:
        missed = f"it misses {lora.relative_error:.2g} of its own size"
        notes.append(f"The change at rank {rank_of(lora.state_dict)}: {missed}; a larger --rank may keep more.")
    return tuple(notes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
