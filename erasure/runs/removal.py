"""The removal of the concepts of a run, one after another into a ledger."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..concept import normalized
from ..erasers import eraser_class, eraser_names
from ..errors import InputError
from ..profile import profile_of
from ..progress import OnProgress
from ..provenance import provenance
from .schema import Run

if TYPE_CHECKING:
    from ..ledger import Entry, Ledger


def remaining(run: Run, ledger: "Ledger") -> tuple[Run, list[str]]:
    """Return the run without what the ledger has removed already, and the names that it had.

    What is removed, or about to be, leaves every preserve list: it is not kept.
    """
    gone = {normalized(name) for entry in ledger.standing for concept in entry.concepts for name in concept.names}
    todo = tuple(concept for concept in run.concepts if normalized(concept.target) not in gone)
    leaving = gone | {normalized(name) for concept in todo for name in concept.names}
    todo = tuple(
        replace(concept, preserve=tuple(kept for kept in concept.preserve if normalized(kept) not in leaving))
        for concept in todo
    )
    return replace(run, concepts=todo), [c.target for c in run.concepts if normalized(c.target) in gone]


def remove(run: Run, pipe: Any, ledger: "Ledger", *, on_progress: OnProgress | None = None) -> Iterator["Entry"]:
    """Remove the run's concepts one after another, or together where the method takes a family as one; yield entries.

    Every entry is in the ledger before it is yielded, so what stands is complete wherever the caller stops.
    """
    names = [name for concept in run.concepts for name in (concept.target, *concept.preserve)]
    judge = profile_of(run.model).judge(str(pipe.device), names)
    requests = [run.concepts] if run.eraser.together and run.concepts else [(concept,) for concept in run.concepts]
    for concepts in requests:
        yield ledger.remove(pipe, run.eraser, concepts, on_progress=on_progress, seed=run.seed, judge=judge)


def check_low_memory(run: Run) -> None:
    """Refuse a run that needs the weights in memory.

    Raises:
        InputError: By its eraser, its attention or its device.
    """
    if run.attention != "sdpa":
        raise InputError(
            f"--low-memory: expected no attention but sdpa, for no pictures are made, got {run.attention!r}."
            " Leave one of them out."
        )
    if run.eraser.depends_on == "weights":
        fit = ", ".join(name for name in eraser_names() if eraser_class(name).depends_on == "text")
        raise InputError(
            f"--low-memory: expected an eraser that reads text alone ({fit}), got {run.eraser.name!r}."
            " Leave --low-memory out."
        )
    check_cpu(run.device)


def check_cpu(device: str) -> None:
    """Refuse a device on which nothing is left on the disk."""
    if device not in ("auto", "cpu"):
        raise InputError(f"--low-memory: expected the device cpu, got {device!r}. Leave one of them out.")


def facts(run: Run, *, device: str, start: float) -> dict[str, Any]:
    """Return what one needs to make the run again: settings, versions, device, commit, time and memory.

    Args:
        run: The run, as it was carried out.
        device: Where.
        start: `time.perf_counter()` when it began.
    """
    # a path of this machine means nothing elsewhere
    return {"config": replace(run, output="").as_json(), **provenance(device=device, start=start)}
