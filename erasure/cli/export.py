"""`erasure export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..progress import progress_bars
from .console import err, out, print_json
from .entries import targets_of
from .models import existing_device, load_pipe, sampler_of
from .options import AsJson, Device, Guidance, LedgerFolder, LowMemory, Steps


def export(
    ledger: LedgerFolder,
    to: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    form: Annotated[
        str, typer.Option("--format", help="pipeline, edit, lora, kohya or checkpoint: see docs/export.md.")
    ] = "pipeline",
    push_to: Annotated[
        str | None, typer.Option("--push", metavar="USER/REPO", help="Then upload OUT to the Hub, as one commit.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: nobody else may see it.")] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="Of lora and kohya  [default: all there is]")] = None,
    guidance: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="a-star, attend-and-excite, localised: put its pipeline beside the weights."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", metavar="TEXT ...", help="For the card's picture  [default: what was removed and kept]"
        ),
    ] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="No picture of before and after.")] = False,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    low_memory: LowMemory = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Write what stands in a ledger for other programs, with a model card, and upload it."""
    from erasure.eval.reports.model_card import prompts_of
    from erasure.eval.reports.publish import publish, rename
    from erasure.pipelines.export.formats import RECORD, Export, already_written, check_low_memory, check_standing
    from erasure.pipelines.export.push import check_push, push

    from ..io.files import check_free
    from ..ledger import Ledger

    opened, wanted = Ledger.open(ledger), Export(format=form, rank=rank, guidance=guidance)
    check_standing(opened)
    if low_memory:
        check_low_memory(wanted, device)
        for option, value in {"--prompt": prompt, "--steps": steps, "--guidance-scale": guidance_scale}.items():
            if value is not None and value != []:
                raise InputError(
                    f"{option}: expected none with --low-memory, which makes no pictures, got {value!r}. Leave one out."
                )
    place = "cpu" if low_memory else existing_device(device)

    def base() -> Any:
        return load_pipe(opened.base.name, place, stored=low_memory)

    if push_to is not None:
        check_push(push_to)
    elif private:
        raise InputError("--private: expected --push USER/REPO beside it, got none. Leave it out.")
    show = err if as_json else out
    name = push_to or to.resolve().name
    written = already_written(opened, wanted, to) if push_to is not None else None
    if written is not None:
        show.print(f"{to}: written before; the upload goes on.", markup=False)
        if written.name != name:
            written = rename(opened, base(), written, to, name)
    else:
        check_free(to)
        prompts = [] if no_pictures or low_memory else prompt or prompts_of(opened)
        with progress_bars(err) as on_progress:
            written = publish(
                opened,
                base(),
                wanted,
                to,
                name=name,
                prompts=prompts,
                sampler=sampler_of(opened.base.name, steps, guidance_scale),
                on_progress=on_progress,
            )
    for note in written.notes:
        show.print(f"note: {note}", markup=False)
    document: dict[str, Any] = {"out": str(to), "load": str(to / wanted.file), "notes": list(written.notes)}
    document |= {"card": str(to / "README.md"), "record": str(to / RECORD)}
    if push_to is not None:
        pushed = push(to, push_to, private=private, message=f"{', '.join(map(targets_of, opened.standing))} removed")
        document |= {"commit": pushed.url, "left": list(pushed.left)}
        for file in pushed.left:
            left = f"{push_to} also holds {file}, which is not of this export. Delete it there."
            show.print(f"note: {left}", markup=False)
        show.print(f"commit: {pushed.url}", markup=False)
    if as_json:
        print_json(document)
        return
    out.print(f"card: {to / 'README.md'}", markup=False)
    out.print(f"{form}: {to / wanted.file}", markup=False)
