"""The `erasure` command. It reads arguments and shows results; all else is the library's, imported when needed."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from ..errors import ErasureError, InputError
from ..progress import Progress, ProgressCounter, progress_bars, staged
from ..provenance import provenance

if TYPE_CHECKING:
    from erasure.eval.protocols.record import Record

    from ..concept import Concept
    from ..edits.edit import Edit
    from ..ledger.ledger import Entry, Ledger
    from ..personalize.folder import Personalized
    from ..runs.run import Run

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class _Group(TyperGroup):
    """Turns what a user can cause into one line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ErasureError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("Interrupted. Whatever was finished before stands, nothing is half written.")


class _ManyValues(TyperCommand):
    """Lets --prompt and --preserve take several values: `--prompt "a cat" "a dog"`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_repeated(args, ("--prompt", "--preserve", "--removed", "--siblings"))))


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Remove concepts from a text-to-image diffusion model, one after another, and see that they are gone and"
    " that the rest is not.",
)

LedgerFolder = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger's folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
AttentionBy = Annotated[str, typer.Option("--attention", help="sdpa; or xformers, on CUDA.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
_DTYPES = ("float32", "float16", "bfloat16")
Prompts = Annotated[list[str], typer.Option("--prompt", metavar="TEXT ...", help="One or more prompts.")]
Seeds = Annotated[str, typer.Option(help="Seeds, as in 0,1,2 or 0-7; every prompt gets each.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampling steps  [default: the model's own]")]
Removed = Annotated[list[str] | None, typer.Option(metavar="TEXT ...", help="What is to be gone; a ledger knows it.")]
Original = Annotated[
    str | None,
    typer.Option(help="What a model was made from; a ledger knows it  [default: tinyworld, for one of its kind]"),
]
Siblings = Annotated[
    list[str] | None,
    typer.Option("--siblings", metavar="TEXT ...", help="What is like its class  [default: what the tiny world knows]"),
]
PicturesEach = Annotated[
    int, typer.Option("--pictures", min=0, help="Of it in company, and as many alone; 0 measures nothing.")
]
LowMemory = Annotated[
    bool,
    typer.Option("--low-memory", help="Leave the weights on the disk, read them one by one; no pictures, on the CPU."),
]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale  [default: the model's own]")]


@app.command(cls=_ManyValues)
def remove(
    concepts: Annotated[
        list[str] | None, typer.Argument(metavar="CONCEPT ...", help="What to remove, in order.")
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="CSV: one a line, optional anchor and preserve columns."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="tinyworld, a diffusers folder or a Hub id  [default: the ledger's base, else tinyworld]"),
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `erasure methods`  [default: uce]")] = None,
    anchor: Annotated[str | None, typer.Option(metavar="TEXT", help="What it becomes  [default: nothing]")] = None,
    preserve: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT ...", help="What must not change  [default: on the tiny world all else it knows]"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="object, style, identity or unsafe  [default: object, or what the tiny world says]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting by path: eraser.reg=0.1, measure.far=400."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A YAML file of the whole run; options override it.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where it is recorded; an existing one goes on  [default: new, under erasure-runs]"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the fits  [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps  [default: auto]")] = None,
    attention: Annotated[str | None, typer.Option(help="sdpa; or xformers, on CUDA  [default: sdpa]")] = None,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Remove only: no pictures, no rates.")] = False,
    low_memory: LowMemory = False,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="OUT", help="Then write what stands as a model, to a new folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove concepts one after another, each an entry of a ledger, and measure after each."""
    start = time.perf_counter()
    from ..runs import run as runs

    raw: dict[str, Any] = runs.read_config(config) if config is not None else {}
    requests = runs.read_concepts(from_file) if from_file is not None else []
    requests = [{"target": name} for name in concepts or []] + requests
    shared = {"anchor": anchor, "preserve": preserve or None, "kind": kind}
    shared = {key: value for key, value in shared.items() if value is not None}
    if requests:
        raw["concepts"] = [{**shared, **request} for request in requests]
    elif shared and isinstance(raw.get("concepts"), list):
        raw["concepts"] = [{**c, **shared} if isinstance(c, dict) else c for c in raw["concepts"]]
    if not raw.get("concepts"):
        raise InputError(
            "remove: expected at least one concept, got none. Name one, or give --from FILE or --config FILE."
        )
    if method is not None and not (isinstance(raw.get("eraser"), dict) and raw["eraser"].get("name") == method):
        raw["eraser"] = {"name": method}
    given = {"model": model, "seed": seed, "device": device, "attention": attention}
    given["output"] = None if ledger is None else str(ledger)
    raw.update({key: value for key, value in given.items() if value is not None})
    if no_measure:
        raw["measure"] = None
    for assignment in settings or []:
        raw = runs.override(raw, assignment)
    if "model" not in raw and raw.get("output") and (Path(raw["output"]) / "ledger.json").is_file():
        from ..ledger.ledger import Ledger

        raw["model"] = Ledger.open(raw["output"]).base.name
    named = [runs.list_path(raw["concepts"])] if isinstance(raw["concepts"], str) else []
    lists = [from_file] if from_file is not None else named
    _remove(runs.parse(raw), lists=lists, low_memory=low_memory, to=to, as_json=as_json, start=start)


def _remove(
    run: "Run", *, lists: Sequence[Path], low_memory: bool, to: Path | None, as_json: bool, start: float
) -> None:
    """Carry out a run and show it; the lists are the files that its concepts came from."""
    from erasure.eval.protocols.record import Record
    from erasure.eval.reports.ledger_report import write_report

    from ..ledger.ledger import Ledger
    from ..runs import run as runs

    show = err if as_json else out  # with --json nothing but the document goes to stdout
    if low_memory:
        runs.check_low_memory(run)
    device = "cpu" if low_memory else _device(run.device)
    folder = Path(run.output) if run.output else _new_folder(run.concepts)
    if to is not None:
        _check_out(to, folder)
    pipe = _loaded(run.model, device, run.attention, stored=low_memory)
    for path in lists:
        runs.check_phrases(path, pipe)
    ledger = Ledger.open_or_create(folder, pipe, _lasting_name(run.model))
    run, already = runs.remaining(run, ledger)
    for name in already:
        show.print(f"{name}: already removed, see `erasure log {folder}`.", markup=False)
    _announce(run, ledger, show)
    steps = []
    with progress_bars(err) as on_progress:
        record = Record(ledger, pipe, run.measure, on_progress)
        for entry in runs.remove(run, pipe, ledger, on_progress=on_progress):
            measured = record.measure(entry)
            steps.append(_step_json(entry, measured))
            show.print(_line(entry, measured), markup=False)
        if record.skipped is not None:
            show.print(f"measure skipped: {record.skipped}.", markup=False)
        facts = {**runs.facts(run, device=device, start=start), "low_memory": low_memory, "steps": steps}
        if not steps and (folder / "run.json").is_file():  # a call that had nothing to do is not the ledger's last run
            facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        report = write_report(record, facts)
    if to is not None:
        _write_model(ledger, pipe, to)
    if as_json:
        document = {
            "ledger": str(folder),
            "base": {"name": ledger.base.name, "fingerprint": ledger.base.fingerprint},
            "steps": steps,
            "already_removed": already,
            "measure_skipped": record.skipped,
            "report": str(report),
            "run": str(folder / "run.json"),
            "out": None if to is None else str(to),
        }
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return
    out.print(_table(ledger, record), markup=False)
    out.print(f"report: {report}", markup=False)
    if to is not None:
        out.print(f"model: {to}", markup=False)


def _check_out(to: Path, ledger: Path) -> None:
    """Refuse a folder for a model that cannot take one, before anything is done."""
    from ..io.files import check_free

    check_free(to)
    if to.resolve() == ledger.resolve():
        raise InputError(f"--out: expected another folder than the ledger's, got {str(to)!r}. Name a new one.")


def _write_model(ledger: "Ledger", pipe: Any, to: Path) -> None:
    """Write what stands as a model of its own, with a card and no picture."""
    from erasure.eval.reports.publish import publish
    from erasure.pipelines.export.formats import Export

    name, sampler = to.resolve().name, _sampler(ledger.base.name, None, None)
    publish(ledger, pipe, Export(), to, name=name, prompts=[], sampler=sampler)


@app.command()
def log(ledger: LedgerFolder, as_json: AsJson = False) -> None:
    """List the removals of a ledger, those undone as well."""
    from ..ledger.ledger import Ledger

    opened = Ledger.open(ledger)
    if as_json:
        entries = [_entry_json(entry, opened) for entry in opened.entries]
        base = {"name": opened.base.name, "fingerprint": opened.base.fingerprint}
        origin = opened.origin and asdict(opened.origin)
        document = {"ledger": str(ledger), "base": base, "origin": origin, "entries": entries}
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return
    table = Table("id", "removed", "becomes", "method", "state", "time", box=None, pad_edge=False)
    for entry in opened.entries:
        state = f"{entry.state}, approximate" if entry.id in opened.approximate else entry.state
        becomes = ", ".join(dict.fromkeys(concept.anchor or "nothing" for concept in entry.concepts))
        table.add_row(entry.id, _targets(entry), becomes, entry.method, state, entry.time)
    out.print(f"base: {opened.base.name} ({opened.base.fingerprint[:12]})", markup=False)
    if opened.origin is not None:
        made = ", ".join(opened.origin.entries)
        out.print(f"replayed: {made} of a ledger of {opened.origin.base.name}", markup=False)
    out.print(table if opened.entries else "no removals yet")


@app.command()
def undo(
    ledger: LedgerFolder,
    name: Annotated[str, typer.Argument(metavar="ID", help="As `erasure log` shows it.")],
    device: Device = "auto",
) -> None:
    """Take one removal back, whichever it is; the others stay."""
    from ..ledger.ledger import Ledger

    opened = Ledger.open(ledger)
    entry = opened.undo(name)
    out.print(f"{entry.id} {_targets(entry)}: undone. Standing: {_standing(opened)}.", markup=False)
    if not opened.approximate:
        return
    try:
        moved = opened.moved(_loaded(opened.base.name, _device(device)))
    except ErasureError as error:  # the undo stands all the same
        moved = {}
        out.print(f"how far the others moved is not known: {error}", markup=False)
    for other in opened.approximate:
        far = f" The weights beneath it moved by {moved[other]:.2f} of its own change." if other in moved else ""
        out.print(f"{other}: was trained on top of an undone removal; an approximation stands.{far}", markup=False)


@app.command()
def verify(ledger: LedgerFolder, device: Device = "auto") -> None:
    """Check a ledger: files by hash, removals by solving them again, the base by fingerprint. Exit code 1 if not."""
    from ..ledger.ledger import Ledger

    opened = Ledger.open(ledger)
    pipe = _loaded(opened.base.name, _device(device))
    problems = opened.verify(pipe)
    for problem in problems:
        out.print(problem, markup=False)
    if problems:
        raise typer.Exit(1)
    count = len(opened.entries)
    out.print(f"verified: {count} removal{'s' * (count != 1)}, files, replay and base are as recorded.", markup=False)


@app.command(cls=_ManyValues)
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
    from ..ledger.ledger import Ledger
    from ..runs.run import read_seeds

    pairs = [(text, seed) for text in prompt for seed in read_seeds(seeds)]
    ledger = Ledger.open(source) if (Path(source) / "ledger.json").is_file() else None
    model = source if ledger is None else ledger.base.name
    make_folder(to)
    place = _device(device)
    if offload and not place.startswith("cuda"):
        raise InputError(f"offload: expected a CUDA device to spare, got {place!r}. Leave it out.")
    pipe = _loaded(model, place, attention, dtype)
    sampler = _sampler(model, steps, guidance_scale)
    with progress_bars(err) as on_progress, _standing_in(ledger, pipe):
        if offload:
            pipe.enable_model_cpu_offload(device=place)
        images = sampler.make(pipe, pairs, on_progress)
    for (text, seed), image in zip(pairs, images, strict=True):
        path = to / f"{slug(text)}-{seed}.png"
        facts = {"prompt": text, "seed": seed, "model": source, **asdict(sampler)}
        write_whole(path, as_png(image, facts))
        out.print(str(path), markup=False)


@app.command(cls=_ManyValues)
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
    from ..ledger.ledger import Ledger
    from ..runs.run import read_seeds

    opened = Ledger.open(ledger)
    pairs = [(text, seed) for text in prompt for seed in read_seeds(seeds)]
    pipe = _loaded(opened.base.name, _device(device), attention)
    opened.check_base(_fingerprint(pipe), opened.base.name)
    sampler = _sampler(opened.base.name, steps, guidance_scale)
    with progress_bars(err) as on_progress:
        columns = [sampler.make(pipe, pairs, staged(on_progress, "images, original"))]
        for entry in opened.standing:
            with opened.applied_to(pipe, upto=entry.id):
                columns.append(sampler.make(pipe, pairs, staged(on_progress, f"images, {entry.id}")))
    columns_named = ["original", *headings(opened)]
    captions = [f"{text}, seed {seed}" for text, seed in pairs]
    write_whole(to, as_png(side_by_side(columns_named, captions, list(zip(*columns, strict=True)))))
    out.print(str(to), markup=False)


@app.command()
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
    from ..ledger.ledger import Ledger

    names = tuple(name.strip() for name in concepts.split(",") if name.strip())
    ledger = Ledger.open(source) if (Path(source) / "ledger.json").is_file() else None
    model = source if ledger is None else ledger.base.name
    guidance = AStar(concepts=names, alpha=alpha)
    pipe = _loaded(model, _device(device))
    sampler = _sampler(model, steps, guidance_scale)
    wanted = [("plain", None), *([("A-STAR", guidance)] if alpha else [])]
    rows = []
    with progress_bars(err) as on_progress, _standing_in(ledger, pipe):
        count = ProgressCounter(on_progress, len(wanted), "images")
        for heading, helped in wanted:
            rows.append((heading, watched(pipe, prompt, names, seed, sampler, helped)))
            count.add()
    facts = {"prompt": prompt, "seed": seed, "model": source, "alpha": alpha, **asdict(sampler)}
    write_whole(to, as_png(attention_sheet(rows, names, columns), facts))
    out.print(str(to), markup=False)


@app.command(cls=_ManyValues)
def evaluate(
    source: Annotated[str, typer.Argument(metavar="LEDGER|MODEL", help="A ledger's folder, or a model.")],
    suite: Annotated[
        str | None,
        typer.Option(help="Of tinyworld: quick (default), standard or full: 80, 2,000 or 8,000 pictures a model."),
    ] = None,
    benchmark: Annotated[str, typer.Option(help="tinyworld, or one that reads prompts from --list.")] = "tinyworld",
    lists: Annotated[
        list[Path] | None, typer.Option("--list", metavar="FILE", help="Prompts of a public benchmark.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the benchmark: limit=1000.")
    ] = None,
    removed: Removed = None,
    original: Original = None,
    gold: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model trained without what was removed, or its denoiser.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(metavar="HUB_ID", help="An image classifier with the classes of a public benchmark.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="For scores.json and report.html.")] = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Judge a model on a benchmark, beside the original, a negative prompt and a destroyed model."""
    from accelerate import PartialState

    from erasure.eval.protocols import sources
    from erasure.eval.protocols.evaluate import evaluate as evaluated
    from erasure.eval.protocols.evaluate import write_scores
    from erasure.eval.reports.evaluation_report import terminal_table, write_evaluation_report

    place = _device(device)
    what = sources.source_of(
        source, lambda name: _loaded(name, place, attention), removed=removed or [], original=original, gold=gold
    )
    asked = sources.benchmark_of(benchmark, what, suite=suite, lists=lists or [], settings=settings or [])
    sampler = sources.sampler_of(asked, what)
    folder = to or what.folder / asked.short
    with progress_bars(err) as on_progress:
        found = evaluated(
            what.rows,
            asked,
            sources.metrics_of(asked, place, classifier),
            sampler=sampler,
            on_progress=on_progress,
            facts={"device": place},
        )
        if not PartialState().is_main_process:
            return  # each of several has the same numbers
        scores = write_scores(found, folder)
        report = write_evaluation_report(found, folder, what.title)
    if as_json:
        document = {**found.as_json(), "scores": str(scores), "report": str(report)}
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return
    _print_whole(terminal_table(found))
    for warning in found.warnings:
        out.print(f"note: {warning}", markup=False)
    for name, why in found.skipped.items():
        out.print(f"not computed: {name}: {why}", markup=False)
    out.print(f"scores: {scores}", markup=False)
    out.print(f"report: {report}", markup=False)


@app.command(cls=_ManyValues)
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
    from erasure.eval.protocols.instances.record import world_class

    from ..backbones import backbone_of
    from ..io.files import check_free, make_folder
    from ..personalize.class_diffusion import ClassDiffusion, Instance
    from ..personalize.folder import Personalized, read_pictures
    from ..personalize.formats import write_formats
    from ..runs.run import TINYWORLD, with_assignments

    start = time.perf_counter()
    if not len(images) == len(class_words) == len(tokens):
        raise InputError(
            f"personalize: expected --images, --class and --token as often as each other, got {len(images)},"
            f" {len(class_words)} and {len(tokens)}."
        )
    for word in class_words:
        world_class(model, word, siblings or [])
    instances = [
        Instance(token=token, class_word=word, pictures=read_pictures(folder))
        for token, word, folder in zip(tokens, class_words, images, strict=True)
    ]
    own = ClassDiffusion.on_tinyworld if model == TINYWORLD else None
    method = with_assignments(ClassDiffusion, settings or [], own)
    folder = to or _free_folder("-".join(token.strip("<>") for token in tokens))
    check_free(folder)
    place = _device(device)
    pipe = _loaded(model, place, attention)
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
    learned = Personalized.write(folder, edit, _lasting_name(model), instances)
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


@app.command(cls=_ManyValues)
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
    from erasure.eval.protocols.instances.record import world_class

    from ..backbones import backbone_of
    from ..io.files import check_free
    from ..personalize.class_diffusion import Instance
    from ..personalize.folder import Personalized
    from ..personalize.forgetting import Forgetting
    from ..runs.run import with_assignments

    start = time.perf_counter()
    learned = Personalized.open(source)
    for each in learned.instances:
        world_class(learned.base, each.class_word, siblings or [])
    words = [instance.token for instance in learned.instances]
    if token is None and len(words) > 1:
        raise InputError(f"--token: expected one of {', '.join(words)}, got none. Say which to forget.")
    word = token or words[0]
    method = with_assignments(Forgetting, settings or [])
    folder = to or source.with_name(f"{source.resolve().name}-forgotten")
    check_free(folder)
    place = _device(device)
    pipe = _loaded(learned.base, place)
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
    edits: dict[str, "Edit"],
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
        judge = record.judge()
        with progress_bars(err) as on_progress:
            states = record.measure(edits, judge, on_progress)
        facts = {
            "instance": asdict(instance),
            "model": found.base,
            "settings": dict(settings),
            "seed": seed,
            **provenance(device=device, start=start),
        }
        report = record.write(states, judge, facts, "report" if len(wanted) == 1 else f"report-{at + 1}")
        documents.append(
            {"instance": asdict(instance), "report": str(report), "scores": str(report.with_suffix(".json"))}
        )
        if not as_json:
            _print_whole(terminal_table(states))
            out.print(f"report: {report}", markup=False)
    if as_json:
        print(json.dumps({"folder": str(found.folder), "instances": documents}, indent=1, ensure_ascii=False))
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


@app.command()
def scores(
    files: Annotated[list[Path], typer.Argument(metavar="FILE ...", help="scores.json files, or their folders.")],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Only this one; may be repeated  [default: all that agree]")
    ] = None,
    row: Annotated[str, typer.Option(help="erased, gold, original, negative_prompt or destroyed.")] = "erased",
    as_json: AsJson = False,
) -> None:
    """Set the scores of several evaluations side by side, as far as they were measured alike."""
    from erasure.eval.reports.score_files import compare_scores

    found = compare_scores(files, metrics or [], row)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    _print_whole(found.table())
    for why, apart in found.reasons.items():
        out.print(f"not compared: {', '.join(apart)}: {why}", markup=False)


@app.command(cls=_ManyValues)
def attack(
    source: Annotated[str, typer.Argument(metavar="LEDGER|MODEL", help="A ledger's folder, or a model.")],
    name: Annotated[str, typer.Option("--attack", metavar="NAME", help="ring-a-bell, mma, unlearn-diff or revival.")],
    budget: Annotated[int, typer.Option(min=1, max=1000, help="Pictures a prompt, at most.")] = 20,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="How many prompts.")] = 40,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the attack: tokens=8.")
    ] = None,
    removed: Removed = None,
    original: Original = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, searches and pictures.")] = 0,
    to: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="For attack.json and report.html.")] = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Try to bring back what was removed, beside the controls that the result must be read against."""
    from erasure.eval.protocols import sources
    from erasure.eval.protocols.red_team import Assault, goals
    from erasure.eval.protocols.rows import ERASED
    from erasure.eval.reports.red_team_report import terminal_table, write_attack_report

    place = _device(device)
    chosen = sources.attack_of(name, settings or [])
    what = sources.source_of(source, lambda at: _loaded(at, place, attention), removed=removed or [], original=original)
    if what.rows[0].name != ERASED:
        raise InputError(f"attack: expected a model that something was removed from, got the original {source!r}.")
    decides, second = sources.witnesses_of(what, place)
    assault = Assault(
        folder=to or what.folder.with_name("attacks") / f"{name}-{what.rows[0].edit or 'model'}",
        erased=what.rows[0],
        concepts=what.concepts,
        attack=chosen,
        sampler=_sampler(what.original, None, None),
        budget=budget,
        witness=decides,
        second=second,
        model=what.original,
    )
    with progress_bars(err) as on_progress:
        assault.run(goals(what.concepts, prompts, model=what.original, seed=seed), on_progress)
    report = write_attack_report(assault, what.title)
    if as_json:
        document = {**assault.as_json(), "record": str(assault.folder / "attack.json"), "report": str(report)}
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return
    _print_whole(terminal_table(assault))
    out.print(f"record: {assault.folder / 'attack.json'}", markup=False)
    out.print(f"report: {report}", markup=False)


@app.command(cls=_ManyValues)
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
    from ..ledger.ledger import Ledger

    opened, wanted = Ledger.open(ledger), Export(format=form, rank=rank, guidance=guidance)
    check_standing(opened)
    if low_memory:
        check_low_memory(wanted, device)
        for option, value in {"--prompt": prompt, "--steps": steps, "--guidance-scale": guidance_scale}.items():
            if value is not None and value != []:
                raise InputError(
                    f"{option}: expected none with --low-memory, which makes no pictures, got {value!r}. Leave one out."
                )
    place = "cpu" if low_memory else _device(device)

    def base() -> Any:
        return _loaded(opened.base.name, place, stored=low_memory)

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
                sampler=_sampler(opened.base.name, steps, guidance_scale),
                on_progress=on_progress,
            )
    for note in written.notes:
        show.print(f"note: {note}", markup=False)
    document: dict[str, Any] = {"out": str(to), "load": str(to / wanted.file), "notes": list(written.notes)}
    document |= {"card": str(to / "README.md"), "record": str(to / RECORD)}
    if push_to is not None:
        pushed = push(to, push_to, private=private, message=f"{', '.join(map(_targets, opened.standing))} removed")
        document |= {"commit": pushed.url, "left": list(pushed.left)}
        for file in pushed.left:
            left = f"{push_to} also holds {file}, which is not of this export. Delete it there."
            show.print(f"note: {left}", markup=False)
        show.print(f"commit: {pushed.url}", markup=False)
    if as_json:
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return
    out.print(f"card: {to / 'README.md'}", markup=False)
    out.print(f"{form}: {to / wanted.file}", markup=False)


@app.command()
def replay(
    ledger: LedgerFolder,
    model: Annotated[str, typer.Option(help="Another model of the same family: a folder or a Hub id.")],
    to: Annotated[
        Path | None, typer.Option("--ledger", metavar="DIR", help="The new ledger  [default: under erasure-runs]")
    ] = None,
    device: Device = "auto",
) -> None:
    """Remove from another model what stands removed in a ledger, fitted anew on that model's weights."""
    from ..ledger.ledger import Ledger
    from ..ledger.replay import replay as replayed
    from ..runs import run as runs

    source, place = Ledger.open(ledger), _device(device)
    pipe = _loaded(model, place)
    folder = to or _new_folder([concept for entry in source.standing for concept in entry.concepts])
    with progress_bars(err) as on_progress:
        target, entries = replayed(
            source,
            pipe,
            _lasting_name(model),
            folder,
            on_progress=on_progress,
            shows=runs.shows_of(model, place),
        )
        if target.entries:
            out.print(f"{folder}: {len(target.entries)} made before.", markup=False)
        for entry in entries:
            out.print(_line(entry, None), markup=False)
    out.print(f"ledger: {folder}", markup=False)


@app.command("load-edit", cls=_ManyValues)
def load_edit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file: an edit, or new weights.")],
    removed: Removed = None,
    kind: Annotated[str | None, typer.Option(help="object, style, identity or unsafe.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The base that it was made for  [default: the ledger's, else tinyworld]")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where it is recorded; an existing one goes on  [default: new, erasure-runs]"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Record an edit that was made elsewhere as a removal: weights as UCE and ESD publish them, or this library's."""
    from ..edits.edit import Edit
    from ..edits.foreign_weights import import_edit, is_own
    from ..ledger.ledger import Ledger
    from ..runs import run as runs

    own = is_own(file)
    if own and removed:
        raise InputError("--removed: expected none for an edit of this library, which says it, got some. Leave it out.")
    if not own and not removed:
        raise InputError("--removed: expected what was removed, which the file does not say, got none. Name it.")
    exists = ledger is not None and (ledger / "ledger.json").is_file()
    name = model or (Ledger.open(ledger).base.name if exists and ledger is not None else runs.TINYWORLD)
    shared = {} if kind is None else {"kind": kind}
    pipe = _loaded(name, _device(device))
    if own:
        edit = Edit.load(file)
    else:
        asked = [{"target": target, **shared} for target in removed or []]
        edit = import_edit(file, pipe, runs.parse({"model": name, "concepts": asked}).concepts)
    folder = ledger or _new_folder(edit.metadata.concepts)
    opened = Ledger.open_or_create(folder, pipe, _lasting_name(name))
    entry = opened.add(edit)
    out.print(f"{entry.id} {_targets(entry)}: {entry.method}, {len(edit.changes)} weights", markup=False)
    out.print(f"ledger: {folder}", markup=False)


@app.command("app")
def web(
    model: Annotated[
        str | None,
        typer.Option(help="tinyworld, a diffusers folder or a Hub id  [default: the ledger's base, else tinyworld]"),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="One ledger that every visitor works on  [default: each has their own]"),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Ask Gradio for a public address.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where it listens  [default: from 7860, the first free]")
    ] = None,
    device: Device = "auto",
) -> None:
    """Start the web demo: remove concepts in a browser and see the same seeds before and after."""
    import signal

    from erasure.demo.serve import serve

    if model is None and ledger is not None and (ledger / "ledger.json").is_file():
        from ..ledger.ledger import Ledger

        model = Ledger.open(ledger).base.name
    name, place = _lasting_name(model or "tinyworld"), _device(device)
    page, address = serve(_loaded(name, place), name, place, ledger=ledger, share=share, port=port)
    out.print(f"the demo is at {address}", markup=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that visitors' folders are deleted on the way out
    page.block_thread()


@app.command()
def methods() -> None:
    """List the erasers and their settings."""
    import inspect
    from dataclasses import fields

    from ..erasers import eraser_class, eraser_names

    for name in eraser_names():
        kind = eraser_class(name)
        module = inspect.getmodule(kind)
        heading = (inspect.getdoc(module) or inspect.getdoc(kind) or "").splitlines()[0]
        out.print(f"[bold]{name}[/bold]  {heading}")
        for item in fields(kind):
            out.print(f"    eraser.{item.name}={item.default!r}", markup=False)


@app.command()
def models() -> None:
    """List the models that can be edited."""
    from ..backbones import families

    out.print("[bold]tinyworld[/bold]  the embedded model of a small drawn world (default)")
    out.print("[bold]DIR[/bold]        a folder saved by diffusers")
    out.print("[bold]HUB_ID[/bold]     a model of the Hugging Face Hub, as owner/name")
    out.print(f"families: {', '.join(families())}", markup=False)


@app.command()
def doctor() -> None:
    """Say what this machine has and what is missing; exit code 1 if the default run cannot work."""
    from erasure.eval.judges.clip import CLIP_WEIGHTS, find_clip

    from .doctor import checks

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, version in provenance("accelerate", "peft", "huggingface_hub")["versions"].items():
        table.add_row(name, version)
    for check in checks(_device("auto")):
        table.add_row(check.name, Text(check.found))  # as it stands: "erasure[app]" is no markup
    no_judge = f"no weights in the local cache: hf download {CLIP_WEIGHTS[0]}, to measure other models than tinyworld"
    table.add_row("CLIP judge", find_clip() or no_judge)
    try:
        _loaded("tinyworld", "cpu")
        table.add_row("tinyworld", "loads")
    except ErasureError as error:
        table.add_row("tinyworld", Text(str(error)))
        out.print(table)
        raise typer.Exit(1) from None
    out.print(table)


def main() -> None:
    """Run the command."""
    app()


def _print_whole(table: Table) -> None:
    """Print a table with nothing cut off, also where the terminal is narrower or there is none."""
    needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
    Console(width=max(out.width, needed), highlight=False).print(table)


def _fail(message: str) -> None:
    err.print(f"erasure: {' '.join(message.split())}", markup=False)
    raise typer.Exit(2)


def _repeated(args: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """Put a flag before each of the values that follow it: `--prompt a b` becomes `--prompt a --prompt b`."""
    flag, values = "", 0
    for arg in args:
        if arg.startswith("-") and arg != "-":
            flag, values = (arg if arg in flags else ""), 0
        elif flag:
            values += 1
            if values > 1:
                yield flag
        yield arg


def _device(name: str) -> str:
    """Return the device to use, if it is there."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # torch says "not compiled with CUDA" by an assertion
        raise InputError(f"device: expected one that this machine has, got {name!r}. Use --device cpu.") from None
    return name


def _sampler(model: str, steps: int | None, guidance_scale: float | None) -> Any:
    from erasure.eval.images.ledger_images import Sampler

    from ..runs.run import MeasureSettings, own_sampling

    own = own_sampling(model, MeasureSettings(steps=steps, guidance_scale=guidance_scale))
    return Sampler(**own)


def _fingerprint(pipe: Any) -> str:
    from ..backbones import backbone_of

    return backbone_of(pipe).fingerprint()


@contextmanager
def _standing_in(ledger: "Ledger | None", pipe: Any) -> Iterator[None]:
    if ledger is None:
        yield
    else:
        with ledger.applied_to(pipe):
            yield


def _new_folder(concepts: "Sequence[Concept]") -> Path:
    """Return a folder under erasure-runs that does not exist yet, named for what is removed."""
    from ..ledger.ledger import slug

    return _free_folder(slug(concepts[:4]))


def _free_folder(name: str) -> Path:
    folder, number = Path("erasure-runs") / name, 2
    while folder.exists():
        folder, number = Path("erasure-runs") / f"{name}-{number}", number + 1
    return folder


def _lasting_name(model: str) -> str:
    """Return the model's name as a ledger keeps it: a folder by its full path, so that it is found from elsewhere."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _announce(run: "Run", ledger: "Ledger", show: Console) -> None:
    """Say what will be done, defaults included."""
    for concept in run.concepts:
        aliases = f" (also {', '.join(concept.aliases)})" if concept.aliases else ""
        kept = (
            f"{len(concept.preserve)} others preserved"
            if len(concept.preserve) > 4
            else f"preserving {', '.join(concept.preserve) or 'nothing'}"
        )
        becomes = repr(concept.anchor) if concept.anchor else "nothing"
        show.print(f"{concept.target}{aliases}: {concept.kind}, becomes {becomes}, {kept}", style="dim", markup=False)
    terms = [name for name, weight in getattr(run.eraser, "preservation", {}).items() if weight]
    if any(name.startswith("semantic") for name in terms) or getattr(run.eraser, "class_phrases", False):
        from ..training.terms.preservation import class_phrases

        phrases = class_phrases(run.concepts)
        some = "; ".join(phrases[:: max(1, len(phrases) // 6)][:6])
        show.print(f"held in {len(phrases)} phrases, among them: {some}", style="dim", markup=False)


def _targets(entry: "Entry") -> str:
    return ", ".join(concept.target for concept in entry.concepts)


def _standing(ledger: "Ledger") -> str:
    return ", ".join(f"{_targets(entry)} ({entry.id})" for entry in ledger.standing) or "nothing"


def _entry_json(entry: "Entry", ledger: "Ledger") -> dict[str, Any]:
    """Return an entry with its concepts by name, and what was asked for in full."""
    data = entry.as_json()
    return {
        **data,
        "concepts": [concept.target for concept in entry.concepts],
        "requests": data["concepts"],
        "approximate": entry.id in ledger.approximate,
    }


def _step_json(entry: "Entry", measured: dict[str, Any] | None) -> dict[str, Any]:
    step = {
        "id": entry.id,
        "concepts": [concept.target for concept in entry.concepts],
        "method": entry.method,
        "settings": entry.settings,
        "seed": entry.seed,
        "seconds": entry.seconds,
    }
    return {**step, **(measured or {"efficacy": None, "retention": {"near": None, "far": None}, "n": None})}


def _line(entry: "Entry", measured: dict[str, Any] | None) -> str:
    """Say in a line what a removal did."""
    took = "" if entry.seconds is None else f", {entry.seconds:.1f} s"
    start = f"{entry.id} {_targets(entry)}: {entry.method}{took}"
    if measured is None:
        return start
    rates = (
        f"efficacy {_rate(measured['removed'][measured['worst']]['efficacy'])}",
        *(f"{role} {_rate(measured['kept'].get(role, {}).get('retention'))}" for role in ("near", "far")),
    )
    return f"{start}; {', '.join(rates)}; {measured['pictures']} pictures, {measured['measure_seconds']:.0f} s"


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "–"
    low, high = rate["interval"]
    return f"{rate['value']:.2f} [{low:.2f}, {high:.2f}]"


def _table(ledger: "Ledger", record: "Record") -> Table:
    """Return what stands and what was measured after each; an interval below each rate, so that 80 columns suffice."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("id", "removed", "method", "efficacy", "near", "far", "change", "fit s"):
        table.add_column(
            column, justify="right" if column in ("change", "fit s") else "left", no_wrap=column != "removed"
        )
    for entry in ledger.standing:
        measured = record.measured(entry)
        cells = [""] * 4
        if measured is not None:
            kept = [measured["kept"].get(role) for role in ("near", "far")]
            rates = [measured["removed"][measured["worst"]]["efficacy"], *(k and k["retention"] for k in kept)]
            changed = kept[1] or kept[0]
            cells = [*map(_rate_in_two, rates), f"{changed['distance']['value']:.3f}" if changed else ""]
        seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
        table.add_row(entry.id, _targets(entry), entry.method, *cells, seconds)
    return table


def _rate_in_two(rate: dict[str, Any] | None) -> str:
    return "–" if rate is None else f"{rate['value']:.2f} of {rate['n']}\n{_rate(rate).partition(' ')[2]}"


def _loaded(model: str, device: str, attention: str = "sdpa", dtype: str = "float32", *, stored: bool = False) -> Any:
    """Load a model with a sign of life on stderr, instead of the bars and warnings of the libraries below.

    One that is `stored` stays on the disk.
    """
    import warnings

    with err.status(f"loading {model}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import torch
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        from ..loading import load_model, load_stored

        if dtype not in _DTYPES:
            raise InputError(f"dtype: expected one of {', '.join(_DTYPES)}, got {dtype!r}. Leave it out for float32.")
        for library in (diffusers_logging, transformers_logging):
            library.disable_progress_bar()
            library.set_verbosity_error()
        if stored:
            return load_stored(model)
        return load_model(model, device=device, dtype=getattr(torch, dtype), attention=attention)


if __name__ == "__main__":
    sys.exit(main())
