"""Options of `python -m erasure.tinyworld.training`."""

from pathlib import Path
from typing import Annotated

import typer

from ...errors import InputError
from .. import MODEL
from ..vocabulary import canonical
from .recipe import DENOISERS, PICTURES, SHARES, STAGES, UNET_STAGES, Recipe
from .run import train
from .transformer import TRANSFORMER_STEPS


def main(
    out: Annotated[Path, typer.Option(help="Folder for state, samples and the finished model.")],
    minutes: Annotated[
        float | None, typer.Option(help="Minutes of training, shared among the stages; the transformer needs none.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    without: Annotated[
        list[str] | None, typer.Option(help="Concept that no training picture shows (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of pictures, weights and order.")] = 0,
    stages: Annotated[
        str,
        typer.Option(
            help="Stages to run, separated by commas; transformer,assemble trains a transformer on the shipped text"
            " tower and autoencoder."
        ),
    ] = ",".join(UNET_STAGES),
    data: Annotated[Path | None, typer.Option(help="Folder of drawn pictures, shared between trainings.")] = None,
    pictures: Annotated[int, typer.Option(help="Number of training pictures.")] = PICTURES,
    lr: Annotated[
        float, typer.Option(help="Highest learning rate of the denoiser; those of the other stages are in proportion.")
    ] = 1e-3,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16: faster on a GPU, and on a processor with instructions for it.")
    ] = "float32",
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of a finished model, whose weights initialise stages without a state.")
    ] = None,
    anew: Annotated[
        str, typer.Option(help="Stages that start from random weights in spite of --start-from, separated by commas.")
    ] = "",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Length of the denoiser's training in steps, in place of its minutes; the transformer's default is"
            f" {TRANSFORMER_STEPS}.",
        ),
    ] = None,
    grounding: Annotated[
        bool, typer.Option(help="Train the UNet's attention maps of the objects' nouns towards the objects' boxes.")
    ] = True,
) -> None:
    """Train the tiny world's model, oracle and judge; after an interruption the same command resumes."""
    chosen, fresh = _chosen(stages), _stages("anew", anew)
    if fresh and start_from is None:
        raise typer.BadParameter("anew: expected --start-from beside it, got none; without it every stage starts anew.")
    if "transformer" in chosen:
        steps = TRANSFORMER_STEPS if steps is None and minutes is None else steps
        start_from = MODEL if start_from is None and not {"clip", "vae"} & {*chosen} else start_from
    _check(chosen, minutes, steps, precision)
    left_out = tuple(_concept(name) for name in without or ())
    recipe = Recipe(
        out=out, minutes=minutes, device=device, without=left_out, seed=seed, data=data, pictures=pictures, lr=lr,
        stages=chosen, start_from=start_from, anew=fresh, precision=precision, steps=steps, grounding=grounding,
    )  # fmt: skip
    try:
        typer.echo(train(recipe))
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _chosen(value: str) -> tuple[str, ...]:
    """Return the stages to run."""
    stages = _stages("stages", value)
    if not stages:
        raise typer.BadParameter(f"stages: expected some of {', '.join(STAGES)}, got none.")
    if {*DENOISERS} <= {*stages}:
        raise typer.BadParameter("stages: expected one denoiser, got unet and transformer. Train them in two folders.")
    return stages


def _check(stages: tuple[str, ...], minutes: float | None, steps: int | None, precision: str) -> None:
    """Refuse an unknown precision, and stages whose length is neither in minutes nor in steps."""
    if precision not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"precision: expected float32 or bfloat16, got {precision!r}.")
    timed = [stage for stage in stages if stage in SHARES and not (stage in DENOISERS and steps)]
    if (minutes is None and timed) or (minutes is not None and minutes <= 0):
        raise typer.BadParameter(f"minutes: expected a number > 0 for {', '.join(timed or stages)}, got {minutes!r}.")


def _concept(name: str) -> str:
    known = canonical(name)
    if known is None:
        raise typer.BadParameter(f"without: expected a word of the tiny world, got {name!r}.")
    return known


def _stages(option: str, value: str) -> tuple[str, ...]:
    names = tuple(name for name in value.split(",") if name)
    for name in names:
        if name not in STAGES:
            raise typer.BadParameter(f"{option}: expected some of {', '.join(STAGES)}, got {name!r}.")
    return names
