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
    from diffusers import DiffusionPipeline

    from ..ledger import Entry, Ledger


def remaining(run: Run, ledger: "Ledger") -> tuple[Run, list[str]]:
    """Return the run without the concepts that the ledger has removed, and the names of those.

    Preserve lists stay as they are: an entry records what it would record alone, so that undoing another leaves no
    trace. What else is removed is left out where removals meet: in the joint solve, and in the training of a new one.
    """
    removed = {normalized(name) for entry in ledger.standing for concept in entry.concepts for name in concept.names}
    todo = tuple(concept for concept in run.concepts if normalized(concept.target) not in removed)
    return replace(run, concepts=todo), [c.target for c in run.concepts if normalized(c.target) in removed]


def remove(
    run: Run, pipe: "DiffusionPipeline", ledger: "Ledger", *, on_progress: OnProgress | None = None
) -> Iterator["Entry"]:
    """Remove the concepts of a run one after another, or as one entry if the method is `together`; yield the entries.

    An entry is in the ledger before it is yielded, so the ledger is complete wherever the caller stops.
    """
    names = [name for concept in run.concepts for name in (concept.target, *concept.preserve)]
    judge = profile_of(run.model).judge(str(pipe.device), names)
    requests = [run.concepts] if run.eraser.together and run.concepts else [(concept,) for concept in run.concepts]
    for concepts in requests:
        yield ledger.remove(pipe, run.eraser, concepts, on_progress=on_progress, seed=run.seed, judge=judge)


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
    if run.eraser.depends_on == "weights":
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
        run: The run, without the concepts that it skipped.
        device: Device of the model.
        start: `time.perf_counter()` at its beginning.
    """
    # a path of this machine is not reproducible
    return {"config": replace(run, output="").as_json(), **provenance(device=device, start=start)}
