"""Commands that sample images: generate, compare, attention."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..io.text import composed
from ..progress import ProgressCounter, progress_bars, staged
from .console import err, out
from .models import encoded, existing_device, fingerprint_of, load_pipe, model_and_ledger, standing_in
from .options import (
    MOST_SEED,
    AttentionBy,
    CommandGroup,
    Device,
    Guidance,
    LedgerFolder,
    LedgerOrModel,
    Prompts,
    Seeds,
    Steps,
)

commands = CommandGroup("Look")


@commands.command()
def generate(
    source: LedgerOrModel,
    prompt: Prompts,
    to: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the images.")],
    seeds: Seeds = "0",
    steps: Steps = None,
    guidance_scale: Guidance = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the weights: float32, float16 or bfloat16.")] = "float32",
    attention: AttentionBy = "sdpa",
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep only the active component of the model on the GPU.")
    ] = False,
) -> None:
    """Sample images from a model, or from the base of a ledger with its standing removals."""
    from erasure.eval.images.png import as_png, file_name

    from ..io.files import check_places, make_folder, write_whole
    from ..runs.seeds import read_seeds
    from ..sampling import SamplingSettings, grid, sample

    texts, image_seeds = grid(dict.fromkeys(map(composed, prompt)), read_seeds(seeds))
    check_places(to, *map(file_name, texts, image_seeds))
    model, ledger = model_and_ledger(source)
    place = existing_device(device)
    if offload and not place.startswith("cuda"):
        raise InputError(f"offload: expected a CUDA device, got {place!r}. Leave it out.")
    pipe = load_pipe(model, place, attention, dtype)
    make_folder(to)
    sampler = SamplingSettings.of(model, steps=steps, guidance_scale=guidance_scale)
    with progress_bars(err) as on_progress, standing_in(ledger, pipe):
        if offload:
            pipe.enable_model_cpu_offload(device=place)
        images = sample(pipe, encoded(pipe, texts), image_seeds, sampler, on_progress=on_progress)
    for text, seed, image in zip(texts, image_seeds, images, strict=True):
        path = to / file_name(text, seed)
        facts = {"prompt": text, "seed": seed, "model": source, **sampler.as_settings()}
        write_whole(path, as_png(image, facts))
        out.print(str(path))


@commands.command()
def compare(
    ledger: LedgerFolder,
    prompt: Prompts,
    to: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Image file to write.")],
    seeds: Seeds = "0",
    steps: Steps = None,
    guidance_scale: Guidance = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
) -> None:
    """Write images side by side: the original model, then the model after each removal."""
    from erasure.eval.images.png import as_png
    from erasure.eval.images.sheets import side_by_side
    from erasure.eval.protocols.ledger_measures import headings

    from ..io.files import check_file, write_whole
    from ..ledger import Ledger
    from ..runs.seeds import read_seeds
    from ..sampling import SamplingSettings, grid, sample

    opened = Ledger.open(ledger)
    texts, image_seeds = grid(dict.fromkeys(map(composed, prompt)), read_seeds(seeds))
    pipe = load_pipe(opened.base.name, existing_device(device), attention)
    opened.check_base(fingerprint_of(pipe), opened.base.name)
    check_file(to)
    sampler = SamplingSettings.of(opened.base.name, steps=steps, guidance_scale=guidance_scale)
    with progress_bars(err) as on_progress:
        on_images = staged(on_progress, "images, original")
        columns = [sample(pipe, encoded(pipe, texts), image_seeds, sampler, on_progress=on_images)]
        for entry in opened.standing:
            with opened.applied_to(pipe, upto=entry.id):
                on_images = staged(on_progress, f"images, {entry.id}")
                columns.append(sample(pipe, texts, image_seeds, sampler, on_progress=on_images))
    columns_named = ["original", *headings(opened)]
    captions = [f"{text}, seed {seed}" for text, seed in zip(texts, image_seeds, strict=True)]
    write_whole(to, as_png(side_by_side(columns_named, captions, list(zip(*columns, strict=True)))))
    out.print(str(to))


@commands.command()
def attention(
    source: LedgerOrModel,
    prompt: Annotated[str, typer.Option(help="Prompt of the image.")],
    concepts: Annotated[str, typer.Option(metavar="A,B", help="Words or phrases of the prompt, separated by commas.")],
    to: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Image file to write.")],
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the noise.")] = 0,
    columns: Annotated[int, typer.Option(min=2, help="Number of steps to show.")] = 6,
    alpha: Annotated[float, typer.Option(min=0, help="Step size of A-STAR; 0 shows the model alone.")] = 20.0,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    device: Device = "auto",
) -> None:
    """Write the cross-attention maps of words over the sampling steps, without and with A-STAR."""
    from erasure.eval.images.attention_maps import attention_sheet, trace_attention
    from erasure.eval.images.png import as_png

    from ..concept import normalized
    from ..guidance.a_star import AStar
    from ..io.files import check_file, write_whole
    from ..sampling import SamplingSettings

    names = tuple({normalized(name): name.strip() for name in concepts.split(",") if name.strip()}.values())
    model, ledger = model_and_ledger(source)
    guidance = AStar(concepts=names, alpha=alpha)
    pipe = load_pipe(model, existing_device(device))
    check_file(to)
    sampler = SamplingSettings.of(model, steps=steps, guidance_scale=guidance_scale)
    rounds = [("plain", None), *([("A-STAR", guidance)] if alpha else [])]
    rows = []
    with progress_bars(err) as on_progress, standing_in(ledger, pipe):
        count = ProgressCounter(on_progress, len(rounds), "images")
        for heading, helped in rounds:
            rows.append((heading, trace_attention(pipe, prompt, names, seed, sampler, helped)))
            count.add()
    facts = {"prompt": prompt, "seed": seed, "model": source, "alpha": alpha, **sampler.as_settings()}
    write_whole(to, as_png(attention_sheet(rows, names, columns), facts))
    out.print(str(to))
