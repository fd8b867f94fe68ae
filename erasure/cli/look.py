"""Commands that draw images: generate, compare, attention."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..progress import ProgressCounter, progress_bars, staged
from .console import err, out
from .models import existing_device, fingerprint_of, load_pipe, sampler_of, standing_in
from .options import AttentionBy, Device, Guidance, LedgerFolder, Prompts, Seeds, Steps


def generate(
    source: Annotated[str, typer.Argument(metavar="LEDGER|MODEL", help="A ledger's folder, or a model.")],
    prompt: Prompts,
    to: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the pictures.")],
    seeds: Seeds = "0",
    steps: Steps = None,
    guidance_scale: Guidance = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    attention: AttentionBy = "sdpa",
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep on the GPU only the part of the model that is at work.")
    ] = False,
) -> None:
    """Make pictures, by a model or by what stands in a ledger."""
    from erasure.eval.images.ledger_images import as_png, slug

    from ..io.files import make_folder, write_whole
    from ..ledger import Ledger
    from ..runs.seeds import read_seeds

    pairs = [(text, seed) for text in prompt for seed in read_seeds(seeds)]
    ledger = Ledger.open(source) if (Path(source) / "ledger.json").is_file() else None
    model = source if ledger is None else ledger.base.name
    make_folder(to)
    place = existing_device(device)
    if offload and not place.startswith("cuda"):
        raise InputError(f"offload: expected a CUDA device to spare, got {place!r}. Leave it out.")
    pipe = load_pipe(model, place, attention, dtype)
    sampler = sampler_of(model, steps, guidance_scale)
    with progress_bars(err) as on_progress, standing_in(ledger, pipe):
        if offload:
            pipe.enable_model_cpu_offload(device=place)
        images = sampler.make(pipe, pairs, on_progress)
    for (text, seed), image in zip(pairs, images, strict=True):
        path = to / f"{slug(text)}-{seed}.png"
        facts = {"prompt": text, "seed": seed, "model": source, **asdict(sampler)}
        write_whole(path, as_png(image, facts))
        out.print(str(path), markup=False)


def compare(
    ledger: LedgerFolder,
    prompt: Prompts,
    to: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="The picture to write.")],
    seeds: Seeds = "0",
    steps: Steps = None,
    guidance_scale: Guidance = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
) -> None:
    """Set pictures side by side: the original, then the model after each removal."""
    from erasure.eval.images.ledger_images import as_png, side_by_side
    from erasure.eval.protocols.record import headings

    from ..io.files import write_whole
    from ..ledger import Ledger
    from ..runs.seeds import read_seeds

    opened = Ledger.open(ledger)
    pairs = [(text, seed) for text in prompt for seed in read_seeds(seeds)]
    pipe = load_pipe(opened.base.name, existing_device(device), attention)
    opened.check_base(fingerprint_of(pipe), opened.base.name)
    sampler = sampler_of(opened.base.name, steps, guidance_scale)
    with progress_bars(err) as on_progress:
        columns = [sampler.make(pipe, pairs, staged(on_progress, "images, original"))]
        for entry in opened.standing:
            with opened.applied_to(pipe, upto=entry.id):
                columns.append(sampler.make(pipe, pairs, staged(on_progress, f"images, {entry.id}")))
    columns_named = ["original", *headings(opened)]
    captions = [f"{text}, seed {seed}" for text, seed in pairs]
    write_whole(to, as_png(side_by_side(columns_named, captions, list(zip(*columns, strict=True)))))
    out.print(str(to), markup=False)


def attention(
    source: Annotated[str, typer.Argument(metavar="LEDGER|MODEL", help="A ledger's folder, or a model.")],
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    concepts: Annotated[str, typer.Option(metavar="A,B", help="Words or phrases of the prompt, with commas.")],
    to: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.png", help="The picture to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    columns: Annotated[int, typer.Option(min=2, help="How many steps to show.")] = 6,
    alpha: Annotated[float, typer.Option(min=0, help="Size of A-STAR's updates; 0 shows the model alone.")] = 20.0,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    device: Device = "auto",
) -> None:
    """Show where the words of a prompt look while it is drawn, before and after A-STAR."""
    from erasure.eval.images.attention_maps import attention_sheet, watched
    from erasure.eval.images.ledger_images import as_png

    from ..guidance.a_star import AStar
    from ..io.files import write_whole
    from ..ledger import Ledger

    names = tuple(name.strip() for name in concepts.split(",") if name.strip())
    ledger = Ledger.open(source) if (Path(source) / "ledger.json").is_file() else None
    model = source if ledger is None else ledger.base.name
    guidance = AStar(concepts=names, alpha=alpha)
    pipe = load_pipe(model, existing_device(device))
    sampler = sampler_of(model, steps, guidance_scale)
    wanted = [("plain", None), *([("A-STAR", guidance)] if alpha else [])]
    rows = []
    with progress_bars(err) as on_progress, standing_in(ledger, pipe):
        count = ProgressCounter(on_progress, len(wanted), "images")
        for heading, helped in wanted:
            rows.append((heading, watched(pipe, prompt, names, seed, sampler, helped)))
            count.add()
    facts = {"prompt": prompt, "seed": seed, "model": source, "alpha": alpha, **asdict(sampler)}
    write_whole(to, as_png(attention_sheet(rows, names, columns), facts))
    out.print(str(to), markup=False)
