"""Commands of personalised models: personalize, forget."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..progress import Progress, progress_bars
from ..provenance import provenance
from .console import err, out, print_json, print_whole
from .models import existing_device, free_folder, lasting_name, load_pipe
from .options import MOST_SEED, AsJson, AttentionBy, CommandGroup, Device, ImagesEach, Siblings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..edits import WeightEdit
    from ..personalize.folder import Learned, Personalized

commands = CommandGroup("Personalise")


@commands.command()
def personalize(
    images: Annotated[
        list[Path], typer.Option("--images", metavar="DIR", help="Folder with two or more images of the instance.")
    ],
    class_words: Annotated[list[str], typer.Option("--class", metavar="WORD", help="Class of the instance: dog.")],
    tokens: Annotated[
        list[str], typer.Option("--token", metavar="WORD", help="New token for the instance: '<biscuit>'.")
    ],
    model: Annotated[str, typer.Option(help="Model: tinyworld, a diffusers folder or a Hub id.")] = "tinyworld",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the training: spl_weight=0.1.")
    ] = None,
    siblings: Siblings = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the result; default: a new one under erasure-runs."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the training.")] = 0,
    images_each: ImagesEach = 24,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Learn an instance from a few images by ClassDiffusion; --images, --class and --token repeat for several."""
    from ..backbones import backbone_of
    from ..io.files import check_free, new_folder
    from ..io.text import slug
    from ..personalize.class_diffusion import ClassDiffusion, Instance
    from ..personalize.folder import Personalized, read_images
    from ..personalize.formats import write_formats
    from ..profile import profile_of
    from ..runs.overrides import with_assignments

    start = time.perf_counter()
    if not len(images) == len(class_words) == len(tokens):
        raise InputError(
            f"personalize: expected as many --images as --class and --token, got {len(images)},"
            f" {len(class_words)} and {len(tokens)}."
        )
    for word in class_words:
        profile_of(model).class_name(word, siblings or [])
    instances = [
        Instance(token=token, class_word=word, images=read_images(folder))
        for token, word, folder in zip(tokens, class_words, images, strict=True)
    ]
    method = with_assignments(ClassDiffusion, settings or [], profile_of(model).settings(ClassDiffusion.name))
    folder = to or free_folder(slug("-".join(tokens), 40, "instance"))
    check_free(folder)
    place = existing_device(device)
    pipe = load_pipe(model, place, attention)
    losses: list[tuple[float, ...]] = []
    with progress_bars(err) as on_progress:

        def record_losses(progress: Progress) -> None:
            losses.append(progress.parts)
            on_progress(progress)

        edit = method.fit(backbone_of(pipe), instances, seed=seed, on_progress=record_losses)
    if not as_json:
        _print_losses(losses, method.spl_weight)
    with new_folder(folder) as unfinished:
        write_formats(edit, pipe, unfinished)
        Personalized.write(unfinished, edit, lasting_name(model), instances)
    learned = Personalized.open(folder)
    measure = _InstanceMeasure(pipe, siblings or [], images_each, place, start, as_json)
    measure.show(learned, learned.instances, {"learned": edit}, seed=seed)


@commands.command()
def forget(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder written by `erasure personalize`.")],
    token: Annotated[str | None, typer.Option(metavar="WORD", help="Token to forget, if several were learned.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the fit: steps=400.")
    ] = None,
    siblings: Siblings = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the result; default: DIR-forgotten.")
    ] = None,
    images_each: ImagesEach = 24,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Forget a learned instance, without any image of it, and measure that its class is kept."""
    from ..backbones import backbone_of
    from ..io.files import check_free, new_folder
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
        raise InputError(f"--token: expected one of {', '.join(words)}, got none. Name the one to forget.")
    word = token or words[0]
    method = with_assignments(Forgetting, settings or [])
    folder = to or source.with_name(f"{source.resolve().name}-forgotten")
    check_free(folder)
    place = existing_device(device)
    pipe = load_pipe(learned.base, place)
    with progress_bars(err) as on_progress:
        edit = method.fit(backbone_of(pipe), learned.edit, word, on_progress=on_progress)
    instances = [
        Instance(token=each.token, class_word=each.class_word, images=learned.images(each.token))
        for each in learned.instances
    ]
    with new_folder(folder) as unfinished:
        Personalized.write(unfinished, edit, learned.base, instances)
    kept = Personalized.open(folder)
    measure = _InstanceMeasure(pipe, siblings or [], images_each, place, start, as_json)
    chosen = [instance for instance in kept.instances if instance.token == word]
    measure.show(kept, chosen, {"learned": learned.edit, "forgotten": edit}, seed=0)


@dataclass(frozen=True)
class _InstanceMeasure:
    """Measurement of learned or forgotten instances.

    Attributes:
        pipe: The original model.
        siblings: Classes similar to the class, where the model's are not known.
        images: Images of the instance in a composition, >= 0; 0 measures nothing.
        device: Device of the judges.
        start: `time.perf_counter()` at the beginning of the command.
        as_json: Whether one JSON document is printed instead of tables.
    """

    pipe: "DiffusionPipeline"
    siblings: Sequence[str]
    images: int
    device: str
    start: float
    as_json: bool

    def show(
        self, model: "Personalized", instances: "Sequence[Learned]", edits: "dict[str, WeightEdit]", *, seed: int
    ) -> None:
        """Measure instances of a model under each of several edits, and print the results."""
        documents = []
        for number, instance in enumerate(instances if self.images else (), start=1):
            name = "report" if len(instances) == 1 else f"report-{number}"
            documents.append(self._measured(model, instance, edits, name, seed))
        if self.as_json:
            print_json({"folder": str(model.folder), "instances": documents})
        else:
            out.print(f"model: {model.folder} (as --model, or LEDGER|MODEL)")

    def _measured(
        self, model: "Personalized", instance: "Learned", edits: "dict[str, WeightEdit]", name: str, seed: int
    ) -> dict[str, object]:
        from erasure.eval.protocols.instances.record import InstanceRecord
        from erasure.eval.reports.instance_report import terminal_table, write_instance_report

        record = InstanceRecord(
            folder=model.folder,
            pipe=self.pipe,
            base=model.base,
            instance=instance,
            images=model.images(instance.token),
            composed=self.images,
            kept=max(1, self.images // 2),
            siblings=self.siblings,
            device=self.device,
        )
        metrics = record.metrics()
        with progress_bars(err) as on_progress:
            states = record.measure(edits, metrics, on_progress)
        facts = {
            "instance": asdict(instance),
            "model": model.base,
            "settings": dict(list(edits.values())[-1].metadata.settings),
            "seed": seed,
            **provenance(device=self.device, start=self.start),
        }
        report = write_instance_report(record, states, metrics, facts, name)
        if not self.as_json:
            print_whole(terminal_table(states))
            out.print(f"report: {report}")
        return {"instance": asdict(instance), "report": str(report), "scores": str(report.with_suffix(".json"))}


def _print_losses(losses: Sequence[tuple[float, ...]], weight: float) -> None:
    """Print the mean losses of the first and last tenth of a training; warn if the semantic loss is near 0."""
    if not losses:
        return
    tenth = max(1, len(losses) // 10)
    ends = (losses[:tenth], losses[-tenth:])
    reconstruction, phrase = ([sum(parts[i] for parts in end) / tenth for end in ends] for i in (0, 1))
    line = f"reconstruction loss {reconstruction[0]:.3f} -> {reconstruction[1]:.3f}"
    if weight:
        line += f", distance of its phrase to the class {phrase[0] / weight:.4f} -> {phrase[1] / weight:.4f}"
    out.print(line)
    if weight and phrase[1] / weight < 0.01:
        out.print("note: the new token is close to its class. If the likeness is too weak, lower spl_weight.")
