"""Records of experiments on the tiny world."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from diffusers import DiffusionPipeline
from rich.console import Console

from erasure.backbones import backbone_of
from erasure.errors import ErasureError, InputError
from erasure.eval.protocols.audit.plan import audit_of
from erasure.eval.protocols.audit.run import AuditResults
from erasure.eval.protocols.sources import Source, source_of
from erasure.io.files import check_places, make_folder, write_whole
from erasure.io.json_files import json_digest
from erasure.ledger import Ledger
from erasure.loading import load_model
from erasure.profile import DEFAULT_MODEL
from erasure.progress import OnProgress, staged
from erasure.runs import removal
from erasure.runs.schema import Run

MODELS: Final = (DEFAULT_MODEL, "tinyworld-flux")
"""Models that a method can be measured on."""


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """End the process with one line where an error that a caller can cause, or the caller, ends a `with`."""
    try:
        yield
    except ErasureError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: stopped.")


def count(text: str) -> int:
    """Return an option's value as a number of things, > 0; for `argparse`."""
    number = int(text) if text.isdecimal() else 0
    if not number:
        raise argparse.ArgumentTypeError(f"expected a whole number greater than 0, got {text!r}.")
    return number


def check_denoisers(golds: Sequence[str]) -> None:
    """Raise InputError if a gold is no folder."""
    for gold in golds:
        if not Path(gold).is_dir():
            raise InputError(
                f"--gold: expected the folder of a denoiser, got {gold!r}. Train it: python -m experiments.golds."
            )


def plain_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return a command's options without places on a machine."""
    return {key: value for key, value in vars(options).items() if not isinstance(value, Path)}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the model."""
    parser.add_argument("--model", choices=MODELS, default=DEFAULT_MODEL, help="model of the tiny world")


def folder_of(root: str, name: str, model: str) -> Path:
    """Return the folder of an experiment below another; models but the default have folders of their own."""
    return Path(root, name) if model == DEFAULT_MODEL else Path(root, model, name)


def work_folder(root: Path, name: str, pipe: DiffusionPipeline, *facts: object) -> Path:
    """Return the folder of unfinished work below another; its name tells work with other facts apart.

    Args:
        root: Folder of all work.
        name: Name of the work.
        pipe: The unedited model.
        facts: Everything else that decides the results, as plain data.
    """
    digest = json_digest([backbone_of(pipe).fingerprint(), *facts])
    return root / f"{name}-{digest[:12]}"


def erased_source(run: Run, pipe: DiffusionPipeline, folder: Path, on_progress: OnProgress) -> Source:
    """Return the variants of a run's model; its concepts are removed into the ledger of a folder where they are not.

    Args:
        run: The run.
        pipe: The unedited model.
        folder: Folder of the ledger, of this run alone: concepts that another method removed there would stay so.
        on_progress: Receives the progress.

    Raises:
        InputError: A concept cannot be removed, or the folder cannot be written.
    """
    ledger = Ledger.open_or_create(folder, pipe, run.model)
    todo, _ = removal.remaining(run, ledger)
    list(removal.remove(todo, pipe, ledger, on_progress=staged(on_progress, "removing")))
    return source_of(str(folder), lambda _: pipe)


def audited(
    source: Source,
    cache: Path,
    on_progress: OnProgress,
    *,
    suite: str = "quick",
    names: Sequence[str] = (),
    golds: Sequence[str] = (),
) -> AuditResults:
    """Return the audit of a model of the tiny world.

    Args:
        source: Erased model and its original.
        cache: Folder of outcomes; audits that share one measure the original and the golds once.
        on_progress: Receives the progress.
        suite: "quick", "standard" or "full".
        names: Probes in the place of the suite's.
        golds: Folders of denoisers that were never taught a removed concept.

    Raises:
        InputError: A gold or a concept does not fit, as for `audit_of`.
    """
    audit = audit_of(source, load_model, suite=suite, names=names, golds=golds)
    return replace(audit, cache=cache).run(staged(on_progress, "audit"))


def recorded(experiment: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Run an experiment, write its record to the folder `options.out`, print the path, and return the record.

    An error that a caller can cause ends the process with one line.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with in_one_line(Path(sys.argv[0]).stem):
        check_places(options.out, "run.json")
        record = experiment(options)
        make_folder(options.out)
        Console().print(str(write_record(record, options.out)), markup=False)
        return record


def write_record(record: Mapping[str, Any], folder: Path) -> Path:
    """Write `run.json` and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    path = folder / "run.json"
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    return path
