"""Dry runs: the preserved concepts that a removal endangers, before anything is written."""

from collections.abc import Iterator
from contextlib import nullcontext

from diffusers import DiffusionPipeline

from ..backbones import backbone_of
from ..concept import Concept
from ..ledger import Ledger, is_ledger
from ..training.context import FitContext, TrainingTask
from ..training.draws.neighbours import endangered
from .removal import check_circle
from .schema import Run


def endangered_by(run: Run, pipe: DiffusionPipeline) -> Iterator[tuple[Concept, list[tuple[str, float]]]]:
    """Yield each concept of a run with its preserved names by their drift in a dry run, the most endangered first.

    Every concept is tried by itself, on the model that the run's ledger has now, and nothing is recorded.

    Raises:
        InputError: A concept preserves nothing, or the method could not remove the concepts.
    """
    ledger = Ledger.open(run.output) if run.output and is_ledger(run.output) else None
    run.eraser.require(run.concepts, backbone_of(pipe))
    check_circle(run, ledger)
    with nullcontext() if ledger is None else ledger.applied_to(pipe):
        backbone = backbone_of(pipe)
        context = FitContext(backbone=backbone, seed=run.seed)
        for concept in run.concepts:
            task = TrainingTask(context=context, requests=[concept], trained=backbone.sites().__contains__)
            yield concept, endangered(task)
