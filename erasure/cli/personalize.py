"""Commands of personalised models: personalize, forget."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..progress import Progress, progress_bars
from ..provenance import provenance
from .console import err, out, print_json, print_whole
from .models import existing_device, free_folder, lasting_name, load_pipe
from .options import AsJson, AttentionBy, Device, PicturesEach, Siblings

if TYPE_CHECKING:
    from ..edits import WeightEdit
    from ..personalize.folder import Personalized


def personalize(
    images: Annotated[list[Path], typer.Option("--images", metavar="DIR", help="Pictures of it: two or more.")],
    class_words: Annotated[list[str], typer.Option("--class", metavar="WORD", help="What it is one of: dog.")],
    tokens: Annotated[list[str], typer.Option("--token", metavar="WORD", help="A new word for it: '<biscuit>'.")],
    model: Annotated[str, typer.Option(help="tinyworld, a diffusers folder or a Hub id.")] = "tinyworld",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the training: spl_weight=0.1.")
    ] = None,
    siblings: Siblings = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For what is learned  [default: under erasure-runs]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
    pictures: PicturesEach = 24,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Learn something from a few pictures, by ClassDiffusion; several take --images, --class and --token each."""
    from ..backbones import backbone_of
    from ..io.files import check_free, make_folder
    from ..personalize.class_diffusion import ClassDiffusion, Instance
    from ..personalize.folder import Personalized, read_pictures
    from ..personalize.formats import write_formats
    from ..profile import profile_of
    from ..runs.overrides import with_assignments

    start = time.perf_counter()
    if not len(images) == len(class_words) == len(tokens):
        raise InputError(
            f"personalize: expected --images, --class and --token as often as each other, got {len(images)},"
            f" {len(class_words)} and {len(tokens)}."
        )
    for word in class_words:
        profile_of(model).class_name(word, siblings or [])
    instances = [
        Instance(token=token, class_word=word, pictures=read_pictures(folder))
        for token, word, folder in zip(tokens, class_words, images, strict=True)
    ]
    method = with_assignments(ClassDiffusion, settings or [], profile_of(model).settings(ClassDiffusion.name))
    folder = to or free_folder("-".join(token.strip("<>") for token in tokens))
    check_free(folder)
    place = existing_device(device)
    pipe = load_pipe(model, place, attention)
    losses: list[tuple[float, ...]] = []
    with progress_bars(err) as on_progress:

        def noted(progress: Progress) -> None:
            losses.append(progress.parts)
            on_progress(progress)

        edit = method.fit(backbone_of(pipe), instances, seed=seed, on_progress=noted)
    if not as_json:
        _say_losses(losses, method.spl_weight)
    make_folder(folder)
    write_formats(edit, pipe, folder)
    learned = Personalized.write(folder, edit, lasting_name(model), instances)
    _show_instances(
        learned,
        {"learned": edit},
        pipe,
        siblings or [],
        pictures,
        place,
        start,
        as_json,
        seed=seed,
        settings=edit.metadata.settings,
    )


def forget(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="What `erasure personalize` wrote.")],
    token: Annotated[str | None, typer.Option(metavar="WORD", help="Which, if it learned several.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the fit: steps=400.")
    ] = None,
    siblings: Siblings = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For the model without it  [default: DIR-forgotten]")
    ] = None,
    pictures: PicturesEach = 24,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Take a learned instance out again, without any picture, and see that its class survived both."""
    from ..backbones import backbone_of
    from ..io.files import check_free
    from ..personalize.class_diffusion import Instance
    from ..personalize.folder import Personalized
    from ..personalize.forgetting import Forgetting
    from ..profile import profile_of
    from ..runs.overrides import with_assignments

    start = time.perf_counter()
    learned = Personalized.open(source)
    for each in learned.instances:
        profile_of(learned.base).class_name(each.class_word, siblings or [])
    words = [instance.token for instance in learned.instances]
    if token is None and len(words) > 1:
        raise InputError(f"--token: expected one of {', '.join(words)}, got none. Say which to forget.")
    word = token or words[0]
    method = with_assignments(Forgetting, settings or [])
    folder = to or source.with_name(f"{source.resolve().name}-forgotten")
    check_free(folder)
    place = existing_device(device)
    pipe = load_pipe(learned.base, place)
    known = learned.edit
    with progress_bars(err) as on_progress:
        edit = method.fit(backbone_of(pipe), known, word, on_progress=on_progress)
    instances = [
        Instance(token=each.token, class_word=each.class_word, pictures=learned.pictures(each.token))
        for each in learned.instances
    ]
    kept = Personalized.write(folder, edit, learned.base, instances)
    edits = {"learned": known, "forgotten": edit}
    _show_instances(
        kept,
        edits,
        pipe,
        siblings or [],
        pictures,
        place,
        start,
        as_json,
        only=word,
        seed=0,
        settings=edit.metadata.settings,
    )


def _show_instances(
    found: "Personalized",
    edits: dict[str, "WeightEdit"],
    pipe: Any,
    siblings: Sequence[str],
    pictures: int,
    device: str,
    start: float,
    as_json: bool,
    *,
    only: str | None = None,
    seed: int,
    settings: Any,
) -> None:
    """Measure and show what was learned, or forgotten, instance by instance."""
    from erasure.eval.protocols.instances.record import InstanceRecord
    from erasure.eval.reports.instance_report import terminal_table

    documents = []
    wanted = [instance for instance in found.instances if only in (None, instance.token)]
    for at, instance in enumerate(wanted if pictures else ()):
        record = InstanceRecord(
            folder=found.folder,
            pipe=pipe,
            base=found.base,
            instance=instance,
            pictures=found.pictures(instance.token),
            composed=pictures,
            kept=max(1, pictures // 2),
            siblings=siblings,
            device=device,
        )
        metrics = record.metrics()
        with progress_bars(err) as on_progress:
            states = record.measure(edits, metrics, on_progress)
        facts = {
            "instance": asdict(instance),
            "model": found.base,
            "settings": dict(settings),
            "seed": seed,
            **provenance(device=device, start=start),
        }
        report = record.write(states, metrics, facts, "report" if len(wanted) == 1 else f"report-{at + 1}")
        documents.append(
            {"instance": asdict(instance), "report": str(report), "scores": str(report.with_suffix(".json"))}
        )
        if not as_json:
            print_whole(terminal_table(states))
            out.print(f"report: {report}", markup=False)
    if as_json:
        print_json({"folder": str(found.folder), "instances": documents})
    else:
        out.print(f"model: {found.folder} (as --model, or LEDGER|MODEL)", markup=False)


def _say_losses(losses: Sequence[tuple[float, ...]], weight: float) -> None:
    """Say how the losses of learning fell, over its first and last tenth, and what a semantic loss near 0 means."""
    if not losses:
        return
    tenth = max(1, len(losses) // 10)
    ends = (losses[:tenth], losses[-tenth:])
    pictures, phrase = ([sum(parts[at] for parts in end) / tenth for end in ends] for at in (0, 1))
    said = f"loss on the pictures {pictures[0]:.3f} -> {pictures[1]:.3f}"
    if weight:
        said += f", distance of its phrase to the class {phrase[0] / weight:.4f} -> {phrase[1] / weight:.4f}"
    out.print(said, markup=False)
    if weight and phrase[1] / weight < 0.01:
        out.print("note: the new word says little more than the class. If the likeness is too weak, lower spl_weight.")
