"""Options of `python -m erasure.tinyworld.training`."""

from pathlib import Path
from typing import Annotated

import typer

from ...errors import InputError
from ..vocabulary import canonical
from .recipe import PICTURES, STAGES, Recipe
from .run import train


def main(
    minutes: Annotated[float, typer.Option(help="Minutes of training, shared among the stages.")],
    out: Annotated[Path, typer.Option(help="Folder for state, samples and the finished model.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    without: Annotated[
        list[str] | None, typer.Option(help="Concept that no training picture shows (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of pictures, weights and order.")] = 0,
    stages: Annotated[str, typer.Option(help="Stages to run, separated by commas.")] = ",".join(STAGES),
    data: Annotated[Path | None, typer.Option(help="Folder of drawn pictures, shared between trainings.")] = None,
    pictures: Annotated[int, typer.Option(help="Number of training pictures.")] = PICTURES,
    lr: Annotated[
        float, typer.Option(help="Highest learning rate of the denoiser; those of the other stages are in proportion.")
    ] = 1e-3,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16 (faster only on a processor with matrix units for it).")
    ] = "float32",
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of a finished model, whose weights initialise stages without a state.")
    ] = None,
    anew: Annotated[
        str, typer.Option(help="Stages that start from random weights in spite of --start-from, separated by commas.")
    ] = "",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Length of the denoiser's training in steps, in place of its minutes.")
    ] = None,
    grounding: Annotated[
        bool, typer.Option(help="Train the attention maps of the objects' nouns towards the objects' boxes.")
    ] = True,
) -> None:
    """Train the tiny world's model, oracle and judge; after an interruption the same command resumes."""
    chosen, fresh = _stages("stages", stages), _stages("anew", anew)
    if not chosen:
        raise typer.BadParameter(f"stages: expected some of {', '.join(STAGES)}, got none.")
    if fresh and start_from is None:
        raise typer.BadParameter("anew: expected --start-from beside it, got none; without it every stage starts anew.")
    if precision not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"precision: expected float32 or bfloat16, got {precision!r}.")
    if minutes <= 0:
        raise typer.BadParameter(f"minutes: expected a number > 0, got {minutes!r}.")
    recipe = Recipe(
        out=out,
        minutes=minutes,
        device=device,
        without=tuple(_concept(name) for name in without or ()),
        seed=seed,
        data=data,
        pictures=pictures,
        lr=lr,
        stages=chosen,
        start_from=start_from,
        anew=fresh,
        precision=precision,
        steps=steps,
        grounding=grounding,
    )
    try:
        typer.echo(train(recipe))
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


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
