"""Rows of the ablation of `absent` on the tiny world: `python -m experiments.ablate_absent NAME --concept dog ...`.

One command is one row: a fit, whose edit is kept at some numbers of steps, and its measures: the target asked for in
plain and in held-out phrasings, its siblings, everything else, and the cheap probes of the audit. Killed, it goes on
with what is missing: call the same command again. `--concept dog --original` measures the unedited model.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image
from pydantic import TypeAdapter, ValidationError

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import EditMetadata, WeightEdit
from erasure.erasers import Eraser, make_eraser
from erasure.erasers.absent import Absent
from erasure.erasers.stack import over
from erasure.errors import InputError
from erasure.eval.probes import PROBES
from erasure.eval.probes.base import Aim, Models, Outcome, Subject
from erasure.eval.protocols.audit.rows import aim_of
from erasure.eval.protocols.phrasings import held_out_sentences
from erasure.io.files import check_places, make_folder, write_whole
from erasure.io.json_files import record_if_whole
from erasure.io.tensor_cache import making_timed
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.progress import Progress
from erasure.prompts import fill
from erasure.provenance import provenance
from erasure.sampling import SamplingSettings, sample
from erasure.training.context import FitContext, History
from erasure.training.student import Student

from .experiment import count, in_one_line, write_record

SEED = 3  # of the prompts and the noise; no eraser's
DOSES: Mapping[str, tuple[float, ...]] = {
    "hand-over": (0.2, 0.4),
    "img2img": (0.1, 0.3),
    "soft-prompt": (100.0, 200.0),
    "inversion": (80.0,),
    "relearn": (40.0,),
    "quantise": (4.0,),
}
"""Doses of the probes that each row is measured by."""
UNDER = "closed form that the training stands on, as in a stack, by name or with settings as JSON; default: none"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """Concept, model and folders of a row.

    Attributes:
        pipe: Pipeline of the original.
        aim: Concept and the images that are asked for.
        held_out: Prompts in held-out phrasings.
        options: Options of the command.
        judge: The oracle.
    """

    pipe: DiffusionPipeline
    aim: Aim
    held_out: Sequence[str]
    options: argparse.Namespace
    judge: Any = field(default_factory=tinyworld.load_oracle)

    @property
    def work(self) -> Path:
        """Folder of the row's edits and partial results."""
        return self.options.work / self.options.name

    def measured(self, stop: int, edit: WeightEdit | None, probes: Sequence[str]) -> dict[str, Any]:
        """Return the measures of the model with an edit in force, from the folder where they were made before."""
        result = self._kept(f"{stop}-plain-{self.options.kept}-kept", lambda: self._plain(edit))
        for name in probes:
            result[name] = self._kept(f"{stop}-{name}", lambda name=name: self._probed(name, edit, DOSES[name]))
        return result

    def curve(self, stop: int, edit: WeightEdit | None, name: str, doses: Sequence[float]) -> dict[str, float]:
        """Return the share of images that show the target by dose of a probe, from the folder as well."""
        shown = "-".join(f"{dose:g}" for dose in doses)
        return self._kept(f"{stop}-{name}-{shown}", lambda: self._probed(name, edit, doses))

    def probed(self, stop: int) -> list[str]:
        """Return the probes that a model was measured by before."""
        return [name for name in DOSES if (self.work / f"{stop}-{name}-{self.options.images}.json").is_file()]

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = self.work / f"{name}-{self.options.images}.json"
        if (known := record_if_whole(file, dict)) is not None:
            return known
        result = make()
        write_whole(file, json.dumps(result).encode())
        print(self.options.name, name, json.dumps(result), flush=True)
        return result

    def _plain(self, edit: WeightEdit | None) -> dict[str, Any]:
        target, kept = self.aim.concept.target, self.aim.kept
        seeds = [40_000 + i for i in range(len(self.held_out))]
        with self._applied(edit):
            subject = Subject(pipe=self.pipe, aim=self.aim)
            plain, others = subject.sampled(), subject.sampled_kept()
            held_out = sample(self.pipe, list(self.held_out), seeds, self.aim.sampling)
        shown = [bool(self.judge.shows([image], name)[0]) for image, (name, *_) in zip(others, kept, strict=True)]
        near = [name in self.aim.siblings for name, *_ in kept]
        return {
            "seen": self._seen(plain, target),
            "seen_held_out": self._seen(held_out, target),
            "near": [int(sees) for sees, is_near in zip(shown, near, strict=True) if is_near],
            "far": [int(sees) for sees, is_near in zip(shown, near, strict=True) if not is_near],
        }

    def outcomes(self, name: str, edit: WeightEdit | None, doses: Sequence[float]) -> list[Outcome]:
        """Return the outcomes of a probe at some doses, of the model with an edit in force."""
        probe = PROBES.make(name, **{**self.aim.profile.settings(name), "doses": tuple(doses)})
        material = probe.material(Models(original=lambda: nullcontext(self.pipe)), self.aim)
        with self._applied(edit):
            return list(probe.outcomes(Subject(pipe=self.pipe, aim=self.aim, material=material)))

    def _probed(self, name: str, edit: WeightEdit | None, doses: Sequence[float]) -> dict[str, Any]:
        outcomes = self.outcomes(name, edit, doses)
        return {f"{outcome.dose:g}": self._seen(outcome.images, self.aim.concept.target) for outcome in outcomes}

    def _seen(self, images: Sequence[Image], name: str) -> float:
        return float(sum(map(bool, self.judge.shows(list(images), name))) / len(images))

    def _applied(self, edit: WeightEdit | None) -> AbstractContextManager[object]:
        return nullcontext() if edit is None else edit.applied_to(self.pipe, check=False)


@contextmanager
def standing(bench: Bench, context: FitContext, below: list[WeightEdit]) -> Iterator[FitContext]:
    """Give the context of a training on the row's closed form, which is in force meanwhile and added to `below`."""
    if not bench.options.under:
        yield context
        return
    edit = cast("WeightEdit", eraser_under(bench.options.under).fit([bench.aim.concept], context))
    below.append(edit)
    now = over(context, edit)
    with edit.applied_to(bench.pipe, check=False):
        yield now


def fitted(bench: Bench, eraser: Absent, enough: Callable[[int], bool] = lambda _: False) -> dict[str, Any]:
    """Fit the row's eraser, keep its edit at each stop, and return the curve of the loss.

    Args:
        bench: Concept, model and folders.
        eraser: Eraser with its settings.
        enough: Called after a stop whose edit is kept; True ends the fit. Neither its time counts nor the memory's.
    """
    curve_file = bench.work / "curve.json"
    if (known := record_if_whole(curve_file, dict)) is not None:
        return known
    concepts, stops = [bench.aim.concept], bench.options.stops
    below: list[WeightEdit] = []
    losses: list[float] = []
    cost: dict[str, float] = {}
    aside, last = 0.0, eraser.steps
    began, wall = time.process_time(), time.perf_counter()

    def curve() -> dict[str, Any]:
        means = [sum(losses[i : i + 20]) / len(losses[i : i + 20]) for i in range(0, len(losses), 20)]
        seconds = {"cpu_seconds": spent(), "wall_seconds": time.perf_counter() - wall}
        seconds["seconds_of_images"] = making.seconds
        return {"loss_of_20_steps": means, **seconds, "cpu_seconds_at": cost, "steps": last}

    def spent() -> float:
        return time.process_time() - began - aside - making.seconds

    def report(progress: Progress) -> None:
        if progress.stage == "fit" and progress.loss is not None:
            losses.append(progress.loss)
            if progress.done % 20 == 0:
                write_whole(bench.work / "curve-so-far.json", json.dumps(curve()).encode())

    def keep(student: Student, done: int) -> bool:
        nonlocal aside, last
        if done not in stops:
            return False
        cost[str(done)] = spent()
        save(copy.deepcopy(student.changes()), done)
        paused = time.process_time()
        is_enough = enough(done)
        aside += time.process_time() - paused
        last = done if is_enough else last
        return is_enough

    def save(changes: Any, done: int) -> None:
        trained = WeightEdit(changes=changes, metadata=metadata)
        WeightEdit.compose([*below, trained]).save(bench.work / f"{done}.safetensors")

    history = History(memory=bench.options.work / "memory")
    context = FitContext(backbone=backbone_of(bench.pipe), history=history, on_progress=report)
    metadata = EditMetadata.of(eraser.name, eraser.as_settings(), context.backbone, concepts, 0)
    with making_timed() as making, standing(bench, context, below) as now:
        learned = eraser.learned(eraser.task(concepts, now), keep)
    cost[str(last)] = spent()
    save(learned, last)
    whole = curve()
    write_whole(curve_file, json.dumps(whole).encode())
    return whole


def eraser_under(under: str | Mapping[str, Any]) -> Eraser:
    """Return the closed form of a row, by its name, with the defaults, or as settings with a name."""
    return make_eraser(under) if isinstance(under, str) else make_eraser(**under)


def under_of(text: str) -> str | dict[str, Any]:
    """Return the name of a closed form, or its settings from JSON; for `argparse`."""
    if not text.startswith("{"):
        return text
    settings = settings_of(text)
    if not isinstance(settings.get("name"), str):
        raise argparse.ArgumentTypeError(f"expected the eraser's name among its settings, got {text!r}.")
    return settings


def standing_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the anchor and the closed form of a row, as far as it has them, for its record."""
    return {name: value for name in ("anchor", "under") if (value := getattr(options, name))}


def bench_of(options: argparse.Namespace) -> Bench:
    """Return the bench of a row."""
    pipe = tinyworld.load()
    profile = profile_of(pipe)
    anchor = {"anchor": options.anchor} if options.anchor else {}
    [request] = cast("list[dict[str, Any]]", profile.completed([{"target": options.concept, **anchor}]))
    concept = Concept.from_json(request)
    sampling = SamplingSettings.of(pipe)
    n = options.images
    aim = aim_of(
        concept,
        [concept],
        profile=profile,
        judge=tinyworld.load_oracle(),
        sampling=sampling,
        images=n,
        kept_images=options.kept,
        seed=SEED,
    )
    sentences = held_out_sentences(concept.kind)
    held_out = [fill(sentences[i % len(sentences)], concept.names[i % len(concept.names)]) for i in range(n)]
    return Bench(pipe=pipe, aim=aim, held_out=held_out, options=options)


def eraser_of(settings: Mapping[str, Any]) -> Absent:
    """Return the eraser with the settings of the tiny world where they are left open."""
    return cast("Absent", make_eraser("absent", **{**profile_of(DEFAULT_MODEL).settings("absent"), **settings}))


def main() -> None:
    """Read the command line, fit and measure one row, and write its run.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the row")
    parser.add_argument("--concept", default="dog")
    parser.add_argument("--anchor", help="concept that replaces it; default: none")
    parser.add_argument("--under", type=under_of, help=UNDER)
    parser.add_argument("--settings", type=settings_of, default={}, help="settings of the eraser, as JSON")
    parser.add_argument("--stops", type=int, nargs="*", default=[], help="numbers of steps to measure at as well")
    parser.add_argument("--probes", nargs="*", choices=DOSES, default=list(DOSES), help="probes at the last step")
    parser.add_argument("--images", type=count, default=16, help="images of each measure")
    parser.add_argument("--kept", type=count, default=128, help="images of what stays, near and far together")
    parser.add_argument("--original", action="store_true", help="measure the unedited model")
    parser.add_argument("--out", type=Path, default=Path("results/absent"))
    parser.add_argument("--work", type=Path, default=Path("tinyworld-runs/absent"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # results differ between numbers of threads
    with in_one_line("ablate_absent"):
        record = experiment(options)
        make_folder(options.out / options.name)
        print(write_record(record, options.out / options.name))


def settings_of(text: str) -> dict[str, Any]:
    """Return settings from JSON; for `argparse`."""
    try:
        return TypeAdapter(dict[str, Any]).validate_json(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(f"expected an object as JSON, got {text!r}.") from None


def plan_of(bench: Bench, eraser: Absent | None) -> dict[str, Any]:
    """Return everything that decides the edits of a row, as plain data.

    Args:
        bench: Concept, model and folders.
        eraser: Eraser with its settings; None leaves the model as it is.
    """
    under = eraser_under(bench.options.under) if bench.options.under else None
    plan = {
        "model": backbone_of(bench.pipe).fingerprint(),
        "concept": bench.aim.concept.as_json(),
        "under": under and {"name": under.name, **under.as_settings()},
        "settings": eraser and eraser.as_settings(),
    }
    return json.loads(json.dumps(plan))


def check_plan(folder: Path, name: str, plan: Mapping[str, Any]) -> None:
    """Keep the plan of a row, and refuse another one in its folder.

    Raises:
        InputError: A row of the same name has another plan.
    """
    file = folder / "plan.json"
    known, ours = (dict(_by_path(each)) for each in (record_if_whole(file, dict) or plan, plan))
    if different := [path for path in {**known, **ours} if known.get(path) != ours.get(path)]:
        raise InputError(
            f"{name}: expected the {different[0]} of this row, {known.get(different[0])!r}, got"
            f" {ours.get(different[0])!r}. Choose another name, or delete {folder}."
        )
    write_whole(file, json.dumps(plan).encode())


def _by_path(plan: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Give the values of nested settings by their paths: `settings.steps`."""
    for key, value in plan.items():
        if isinstance(value, Mapping) and value:
            yield from _by_path(value, f"{where}{key}.")
        else:
            yield where + key, value


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Fit and measure a row, and return its record.

    Raises:
        InputError: A setting is wrong, the concept is unknown, or a folder cannot be written.
    """
    start = time.perf_counter()
    check_places(options.out / options.name, "run.json")
    bench, eraser = bench_of(options), None if options.original else eraser_of(options.settings)
    make_folder(bench.work)
    check_plan(bench.work, options.name, plan_of(bench, eraser))
    record: dict[str, Any] = {"row": options.name, "concept": options.concept, "images": options.images}
    record |= standing_of(options)
    if eraser is None:
        record["measures"] = {"0": bench.measured(0, None, options.probes)}
    else:
        record |= {"settings": eraser.as_settings(), "curve": fitted(bench, eraser)}
        record["measures"] = {
            str(stop): bench.measured(
                stop,
                WeightEdit.load(bench.work / f"{stop}.safetensors"),
                options.probes if stop == eraser.steps else bench.probed(stop),
            )
            for stop in sorted({*options.stops, eraser.steps})
        }
    return {**record, "provenance": provenance(start=start)}


if __name__ == "__main__":
    main()
