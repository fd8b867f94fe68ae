"""The removal of the concepts of a run, one after another into a ledger."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from ..backbones import backbone_of
from ..backbones.name_lengths import check_names
from ..concept import Concept, normalized, normalized_names
from ..erasers import eraser_class, eraser_names
from ..errors import InputError
from ..io.json_files import read_record
from ..ledger import check_anchors, recorded_eraser
from ..profile import profile_of
from ..progress import OnProgress
from ..provenance import provenance
from .lists import lines_of
from .schema import Run

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..ledger import Entry, Ledger


def standing_of(run: Run, ledger: "Ledger") -> list["Entry"]:
    """Return the standing entries that remove concepts of a run, in order."""
    removed = ledger.removed_names
    ids = {removed[name] for name in normalized_names(*run.concepts) if name in removed}
    return [entry for entry in ledger.standing if entry.id in ids]


def remaining(run: Run, ledger: "Ledger") -> tuple[Run, list[str]]:
    """Return the run without the concepts that the ledger has removed, and the names of those.

    Preserve lists stay as they are: an entry records what it would record alone, so that undoing another leaves no
    trace. What else is removed is left out where removals meet: in the joint solve, and in the training of a new one.

    Raises:
        InputError: Of a concept's names some stand removed and others do not.
    """
    removed = ledger.removed_names
    todo = tuple(
        concept for i, concept in enumerate(run.concepts) if not _is_removed(concept, removed, f"concepts.{i}")
    )
    staying = {normalized(concept.target) for concept in todo}
    return replace(run, concepts=todo), [c.target for c in run.concepts if normalized(c.target) not in staying]


def _is_removed(concept: Concept, removed: Mapping[str, str], where: str) -> bool:
    """Return True if all names of a concept stand removed, False if none does."""
    stand = {name: removed[normalized(name)] for name in concept.names if normalized(name) in removed}
    if stand and (others := [name for name in concept.names if name not in stand]):
        name, entry = next(iter(stand.items()))
        raise InputError(
            f"{where}: expected names that all stand removed or none, got {name!r}, which entry {entry} removes, and"
            f" {others[0]!r}, which none does. Undo {entry} first, or name {others[0]!r} alone."
        )
    return bool(stand)


def remove(
    run: Run,
    pipe: "DiffusionPipeline",
    ledger: "Ledger",
    *,
    on_progress: OnProgress | None = None,
    on_removed_already: Callable[[str], None] | None = None,
) -> Iterator["Entry"]:
    """Remove the concepts of a run one after another, or as one entry if the method is `at_once`; yield the entries.

    An entry is in the ledger before it is yielded, so the ledger is complete wherever the caller stops.

    Args:
        run: The run.
        pipe: The unedited base model.
        ledger: The ledger.
        on_progress: Receives the progress of the fits.
        on_removed_already: Receives the name of a concept that another process removed since the run began; None
            makes that an error.

    Raises:
        AlreadyRemovedError: See `on_removed_already`; always for concepts that are removed together.
        InputError: Anchors of concepts that are solved together go round in a circle; nothing is removed.
    """
    check_circle(run, ledger)
    names = [name for concept in run.concepts for name in (concept.target, *concept.preserve)]
    judge = profile_of(run.model).judge(str(pipe.device), names)
    requests: list[tuple[Concept, ...]] = [(concept,) for concept in run.concepts]
    if run.eraser.at_once and run.concepts:
        requests = [run.concepts]
    skip = on_removed_already
    yield from ledger.remove_each(
        pipe,
        run.eraser,
        requests,
        on_progress=on_progress,
        seed=run.seed,
        judge=judge,
        distinct=True,
        on_removed_already=None if skip is None or run.eraser.together else lambda request: skip(request[0].target),
    )


def check_circle(run: Run, ledger: "Ledger | None") -> None:
    """Refuse a run whose anchors go round in a circle, among each other or with those of standing removals.

    Raises:
        InputError: They do, and are solved together.
    """
    if run.eraser.dependence == "text":
        check_anchors(() if ledger is None else _solved_together(ledger), run.concepts)


def _solved_together(ledger: "Ledger") -> Iterator[Concept]:
    """Give the standing concepts of erasers that read text alone: a circle of their anchors has no solution."""
    for entry in ledger.standing:
        eraser = recorded_eraser(entry)
        if eraser is not None and eraser.dependence == "text":
            yield from entry.concepts


def check_lengths(run: Run, pipe: "DiffusionPipeline", lists: Sequence[Path]) -> None:
    """Refuse a run with a name that the model cannot read, before there is a ledger.

    Args:
        run: The run.
        pipe: The model.
        lists: Files of its concepts, for errors.

    Raises:
        InputError: See `check_names`; the error names the line, if the concept is in a file.
    """
    check_names(run.concepts, backbone_of(pipe), lines_of(lists))


def check_low_memory(run: Run) -> None:
    """Refuse a run that needs the weights in memory.

    Raises:
        InputError: The eraser, the attention or the device does.
    """
    if run.attention != "sdpa":
        raise InputError(
            f"--low-memory: expected the attention sdpa, as no images are sampled, got {run.attention!r}."
            " Leave one of them out."
        )
    if run.eraser.dependence != "text":
        fit = ", ".join(name for name in eraser_names() if eraser_class(name).depends_on == "text")
        raise InputError(
            f"--low-memory: expected an eraser that reads text alone ({fit}), got {run.eraser.name!r}."
            " Leave --low-memory out."
        )
    check_cpu(run.device)


def check_cpu(device: str) -> None:
    """Refuse a device other than the CPU, which alone reads weights from the disk.

    Raises:
        InputError: It is another device.
    """
    if device not in ("auto", "cpu"):
        raise InputError(f"--low-memory: expected the device cpu, got {device!r}. Leave one of them out.")


def facts(run: Run, *, device: str, start: float) -> dict[str, Any]:
    """Return the record of a run: config, versions, device, commit, time and memory.

    Args:
        run: The run.
        device: Device of the model.
        start: `time.perf_counter()` at its beginning.
    """
    # a path of this machine is not reproducible
    return {"config": replace(run, output="").as_json(), **provenance(device=device, start=start)}


class _Config(TypedDict):
    model: str
    eraser: Mapping[str, Any]
    seed: int


class _Commit(TypedDict):
    commit: str
    dirty: bool


class _Facts(TypedDict):
    """Keys of a run's record that a report shows."""

    config: _Config
    versions: Mapping[str, str]
    device: str
    threads: int | None
    platform: str
    git: _Commit | None
    seconds: float
    peak_mib: float


def recorded_facts(folder: Path) -> dict[str, Any] | None:
    """Return the record of the last run in a ledger's folder; None without one.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / "run.json"
    return read_record(path, _Facts, "a run's record") if path.exists() else None
