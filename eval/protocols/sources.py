"""From what the command is given to what is evaluated: rows, benchmark, metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.errors import InputError, reason, unknown_name
from erasure.judge import CLIP_WEIGHTS, Judge
from erasure.ledger import Ledger
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.registry import with_settings
from erasure.runs.overrides import override, with_assignments
from erasure.runs.sampling import own_sampling
from erasure.runs.schema import MeasureSettings, parse
from erasure.sampling import SamplingSettings

from ..attacks import ATTACKS, Attack
from ..benchmarks import Benchmark, benchmark_class
from ..images.png import slug
from ..probes import PROBES, Probe
from .measures import Metrics
from .public_metrics import PublicMetrics
from .tinyworld_metrics import TinyWorldMetrics
from .variants import ERASED, GOLD, Variant, reference_variants

Loader = Callable[[str], Any]
"""Loads a pipeline by folder or Hub id."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is evaluated.

    Attributes:
        title: What it is, for people.
        rows: The judged model first, if it is not the original itself; then the reference rows.
        removed: What should be gone.
        folder: Where its numbers go if nowhere else is named.
        original: The original's name.
        concepts: What should be gone, with all that is known of it.
    """

    title: str
    rows: tuple[Variant, ...]
    removed: tuple[str, ...]
    folder: Path
    original: str
    concepts: tuple[Concept, ...] = ()


def source_of(
    given: str, load: Loader, *, removed: Sequence[str] = (), original: str | None = None, gold: str | None = None
) -> Source:
    """Return the rows of a ledger, or of a model beside its original.

    Args:
        given: A ledger's folder, or a model.
        load: Loads a pipeline.
        removed: What is to be gone; a ledger knows it.
        original: The model that `given` was made from; a ledger knows it. None is the tiny world, for a model that has
            its layers.
        gold: A model trained without what was removed, or a folder of its denoiser alone, which then reads the
            original's text states and draws through its decoder.

    Raises:
        InputError: Nothing stands in the ledger, or of a model it is not said what is to be gone or what it was made
            from.
    """
    if (Path(given) / "ledger.json").is_file():
        ledger = Ledger.open(given)
        concepts = tuple(concept for entry in ledger.standing for concept in entry.concepts)
        names = tuple(dict.fromkeys(concept.target for concept in concepts))
        if not names:
            raise InputError(f"evaluate: expected a ledger in which a removal stands, got {given!r}. Remove something.")
        base = ledger.base.name
        pipe = load(base)
        judged = Variant(
            name=ERASED,
            pipe=pipe,
            about=f"{given}: {', '.join(f'{e.id} by {e.method}' for e in ledger.standing)}",
            applied=lambda: ledger.applied_to(pipe),
            edit=ledger.state(),
            folder=ledger.path / "evaluations" / "pictures",
        )
        rows, folder = [judged, *reference_variants(pipe, names)], ledger.path / "evaluations"
    else:
        if not removed:
            raise InputError(
                f"evaluate: expected what is to be gone from {given!r}, got nothing. Name it: --removed cat, or give a"
                " ledger."
            )
        names, base = tuple(dict.fromkeys(removed)), original or DEFAULT_MODEL
        concepts = parse({"model": base, "concepts": [{"target": name} for name in names]}).concepts
        pipe = load(base)
        rows = reference_variants(pipe, names)
        folder = Path("erasure-runs") / f"evaluation-{Path(given).name}-{slug(' '.join(names))}"
        if given != base:
            judged = load(given)
            if original is None and _shapes(judged) != _shapes(pipe):
                raise InputError(
                    f"--original: expected the model that {given!r} was made from, got none, and it is not the tiny"
                    " world. Name it: --original MODEL."
                )
            rows.insert(0, Variant(name=ERASED, pipe=judged, about=f"the model {given}"))
    if gold is not None:
        never = _with_denoiser(load(base), Path(gold)) if _is_denoiser(Path(gold)) else load(gold)
        rows.append(Variant(name=GOLD, pipe=never, about=f"{gold}: trained without {', '.join(names)}"))
    return Source(
        title=f"{Path(given).name}: {', '.join(names)}",
        rows=tuple(rows),
        removed=names,
        folder=folder,
        original=base,
        concepts=concepts,
    )


def benchmark_of(
    name: str, source: Source, *, suite: str | None = None, lists: Sequence[Path] = (), settings: Sequence[str] = ()
) -> Benchmark:
    """Return a benchmark by name.

    Args:
        name: See `benchmarks.benchmark_names`.
        source: What was removed from what.
        suite: "quick", "standard" or "full", of the tiny world; None is its quick one.
        lists: Files of prompts, for the benchmarks that read some.
        settings: Its other fields, as key=value.

    Raises:
        UnknownNameError: There is no such benchmark, suite or setting, or the benchmark does not know what was removed.
        InputError: Not as many files as the benchmark reads, a suite where there are none, or a value that cannot be.
    """
    kind = benchmark_class(name)
    if len(lists) != len(kind.lists):
        where = f" Its prompts are not part of this package: {kind.source}." if kind.lists else " It has its prompts."
        named = f" ({', '.join(kind.lists)})" if kind.lists else ""
        raise InputError(f"evaluate: expected {len(kind.lists)} --list for {name}{named}, got {len(lists)}.{where}")
    given: dict[str, Any] = dict(zip(kind.lists, lists, strict=True))
    known = [field.name for field in fields(kind)]
    if "removed" in known:
        # A concept may have been removed twice: by two methods, or by a synonym.
        profile = profile_of(kind.profile)
        gone = (profile.canonical(removed) or removed for removed in source.removed)
        given["removed"] = list(dict.fromkeys(gone))
    chosen: dict[str, Any] = {}
    for assignment in settings:
        chosen = override(chosen, assignment)
    for key in chosen:
        if key not in known or key in given:
            raise unknown_name(f"{name} setting", key, [field for field in known if field not in given])
    if suite is not None and not kind.suites:
        raise InputError(f"--suite: expected none for {name}, got {suite!r}. The list says how many images there are.")
    if kind.suites and not (suite is None and "total" in chosen):
        if "total" in chosen:
            raise InputError(f"--suite: expected none beside --set total, got {suite!r}. Give one of them.")
        if (size := suite or "quick") not in kind.suites:
            raise unknown_name("suite", size, kind.suites)
        given["total"] = kind.suites[size]
    return with_settings(kind, {**given, **chosen}, where="--set ")


def metrics_of(benchmark: Benchmark, device: str, classifier: str | None = None) -> Metrics:
    """Return what measures a benchmark.

    Args:
        benchmark: What asks for the images.
        device: Where the metrics run.
        classifier: An image classifier of the Hub in the place of the benchmark's own.

    Raises:
        InputError: A classifier that the benchmark has no use for.
        MissingWeightsError: It is not in the local cache.
    """
    if not benchmark.profile:
        return PublicMetrics.available(benchmark, device=device, classifier=classifier)
    if classifier is not None:
        raise InputError(f"--classifier: expected none for {benchmark.name}, got {classifier!r}. Its oracle judges it.")
    return TinyWorldMetrics(
        benchmark=benchmark,
        oracle=tinyworld.load_oracle(device),
        judge=tinyworld.load_clip(device),
    )


def sampler_of(benchmark: Benchmark, source: Source) -> SamplingSettings:
    """Return the sampling settings: the model's own defaults for a benchmark of its concepts, else the benchmark's."""
    if benchmark.profile and benchmark.profile == profile_of(source.original).name:
        return own_sampling(source.original, MeasureSettings())
    return benchmark.sampler()


def attack_of(name: str, settings: Sequence[str]) -> Attack | Probe:
    """Return an attack or a probe by name, with settings as key=value.

    Raises:
        UnknownNameError: There is no such attack or probe, or it has no such setting.
        InputError: A value is out of range.
    """
    kinds: dict[str, type[Attack] | type[Probe]] = {**ATTACKS.classes(), **PROBES.classes()}
    if name not in kinds:
        raise unknown_name("attack", name, kinds)
    return with_assignments(kinds[name], settings)


def judges_of(source: Source, device: str) -> tuple[Judge, Judge | None]:
    """Return the judge that decides if a concept is back, and an independent second one; None without a second.

    Raises:
        InputError: The model's images have no judge.
    """
    names = [name for concept in source.concepts for name in (concept.target, *concept.preserve)]
    judges = profile_of(source.original).judges(device, names)
    if not judges:
        raise InputError(
            f"attack: expected CLIP weights in the local cache to look at images with, got none. Download one of"
            f" {', '.join(CLIP_WEIGHTS)} with huggingface-cli."
        )
    return judges[0], judges[1] if len(judges) > 1 else None


def _shapes(pipe: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in backbone_of(pipe).parameters(lambda name: True).items()}


def _is_denoiser(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()


def _with_denoiser(pipe: Any, folder: Path) -> Any:
    """Put a folder's denoiser into a pipeline.

    Raises:
        InputError: The folder holds no denoiser, or one of another shape.
    """
    before = pipe.unet
    try:
        denoiser = type(before).from_pretrained(folder, torch_dtype=before.dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"gold: expected a denoiser in {str(folder)!r}, got {reason(error)}") from error
    shapes = [{name: p.shape for name, p in net.named_parameters()} for net in (before, denoiser)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"gold: expected a denoiser with the original's layers, got another in {str(folder)!r}."
            " Give the whole model."
        )
    pipe.register_modules(unet=denoiser.to(before.device).eval().requires_grad_(False))
    return pipe
