"""`erasure export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import InputError
from ..progress import progress_bars
from .console import err, out, print_json
from .entries import targets_of
from .models import existing_device, load_pipe
from .options import AsJson, CommandGroup, Device, Guidance, LedgerFolder, Link, LowMemory, Steps

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from erasure.pipelines.export.formats import Export, Written

    from ..ledger import Ledger
    from ..sampling import SamplingSettings

commands = CommandGroup("Export")


@commands.command()
def export(
    ledger: LedgerFolder,
    to: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Format of the files: pipeline, edit, lora, kohya, checkpoint or single-file; see docs/export.md.",
        ),
    ] = "pipeline",
    push_to: Annotated[
        str | None,
        typer.Option("--push", metavar="USER/REPO", help="Repository of the Hub to upload OUT to, as one commit."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make the repository private.")] = False,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of lora and kohya; default: that of the edit, else half of a layer's side."),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Guidance whose pipeline is added to the weights: {guidance}."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="TEXT ...",
            help="Prompts of the model card's images; default: removed and preserved concepts.",
        ),
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Write no images in the model card.")] = False,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    base_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With single-file: the base as one file of the original release."),
    ] = None,
    low_memory: LowMemory = False,
    link: Link = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Export the standing removals of a ledger for other programs, with a model card; upload them to the Hub."""
    from erasure.eval.reports.publish import rename
    from erasure.io.push import check_push
    from erasure.pipelines.export.formats import (
        RECORD,
        Export,
        already_written,
        base_file_of,
        check_low_memory,
        check_standing,
    )

    from ..io.files import check_free, resolved
    from ..ledger import Ledger
    from ..sampling import SamplingSettings

    given_file = None if base_file is None else str(base_file)
    opened = Ledger.open(ledger)
    spec = Export(format=form, rank=rank, guidance=guidance, base_file=given_file, link=link)
    check_standing(opened)
    if form == "single-file":
        base_file_of(spec)
    if low_memory:
        check_low_memory(spec, device)
    if low_memory or no_images:
        _check_no_images("--low-memory" if low_memory else "--no-images", prompt, steps, guidance_scale)
    place = "cpu" if low_memory else existing_device(device)
    if push_to is not None:
        check_push(push_to)
    elif private:
        raise InputError("--private: expected --push USER/REPO beside it, got none. Leave it out.")
    show = err if as_json else out
    name = push_to or resolved(to).name
    written = already_written(opened, spec, to) if push_to is not None else None
    if written is not None:
        show.print(f"{to}: written before; the upload goes on.")
        if written.name != name:
            pipe = load_pipe(opened.base.name, place, stored=low_memory)
            written = rename(opened, pipe, written, to, name)
    else:
        check_free(to)
        prompts = [] if no_images or low_memory else prompt or None
        pipe = load_pipe(opened.base.name, place, stored=low_memory)
        sampler = SamplingSettings.of(opened.base.name, steps=steps, guidance_scale=guidance_scale)
        written = _written(opened, pipe, spec, to, name, prompts, sampler)
    for note in written.notes:
        show.print(f"note: {note}")
    document: dict[str, object] = {"out": str(to), "load": str(to / spec.file), "notes": list(written.notes)}
    document |= {"card": str(to / "README.md"), "record": str(to / RECORD)}
    if push_to is not None:
        document |= _upload(opened, to, push_to, private=private, show=show)
    if as_json:
        print_json(document)
        return
    out.print(f"card: {to / 'README.md'}")
    out.print(f"{form}: {to / spec.file}")


def _check_no_images(reason: str, prompt: list[str] | None, steps: int | None, guidance_scale: float | None) -> None:
    """Refuse options of images beside an option without images."""
    for option, value in {"--prompt": prompt, "--steps": steps, "--guidance-scale": guidance_scale}.items():
        if value is not None and value != []:
            raise InputError(
                f"{option}: expected none with {reason}, which samples no images, got {value!r}. Leave one out."
            )


def _written(
    ledger: "Ledger",
    pipe: "DiffusionPipeline",
    spec: "Export",
    to: Path,
    name: str,
    prompts: list[str] | None,
    sampler: "SamplingSettings",
) -> "Written":
    """Write an export; no prompts (None) are those of the removed and preserved concepts."""
    from erasure.eval.reports.model_card import prompts_of
    from erasure.eval.reports.publish import publish

    if prompts is None:
        prompts = prompts_of(ledger)
    with progress_bars(err) as on_progress:
        return publish(ledger, pipe, spec, to, name=name, prompts=prompts, sampler=sampler, on_progress=on_progress)


def _upload(ledger: "Ledger", folder: Path, repo: str, *, private: bool, show: Console) -> dict[str, object]:
    """Upload an export and return its part of the JSON document."""
    from erasure.io.push import push

    removed = ", ".join(map(targets_of, ledger.standing))
    pushed = push(folder, repo, private=private, message=f"{removed} removed")
    for file in pushed.left:
        show.print(f"note: {repo} also holds {file}, which is not of this export. Delete it there.")
    show.print(f"commit: {pushed.url}")
    return {"commit": pushed.url, "left": list(pushed.left)}
