"""Sources: the variants, the benchmark and the metrics for the arguments of a command."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from erasure import tinyworld
from erasure.arguments import checks_arguments
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.errors import InputError, unknown_name
from erasure.io.text import distinct_slug
from erasure.judge import CLIP_WEIGHTS, Judge
from erasure.ledger import Ledger, is_ledger
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.registry import with_settings
from erasure.runs.overrides import override, with_assignments
from erasure.runs.schema import parse
from erasure.sampling import SamplingSettings

from ..attacks import ATTACKS, Attack
from ..benchmarks import Benchmark, benchmark_class
from ..probes import SampledProbe, sampled_probes
from .golds import Loader, check_measures, gold_of, holds_model
from .measures import Metrics
from .public_metrics import PublicMetrics
from .tinyworld_metrics import TinyWorldMetrics
from .variants import ERASED, GOLD, ORIGINAL, Variant, reference_variants


@dataclass(frozen=True, kw_only=True)
class Source:
    """Variants to evaluate.

    Attributes:
        title: Title of the report.
        variants: Judged model first, unless it is the original; then the reference variants.
        removed: Targets of the removals.
        folder: Default folder of the results.
        original: Name of the original model.
        concepts: Removed concepts.
    """

    title: str
    variants: tuple[Variant, ...]
    removed: tuple[str, ...]
    folder: Path
    original: str
    concepts: tuple[Concept, ...] = ()


@checks_arguments
def source_of(
    name: str, load: Loader, *, removed: Sequence[str] = (), original: str | None = None, gold: str | None = None
) -> Source:
    """Return the variants of a ledger, or of a model and its original.

    Args:
        name: Folder of a ledger, or a model.
        load: Function that loads a pipeline.
        removed: Concepts removed from a model; none for a ledger, which records them.
        original: Original of a model; None for a ledger, which records it, and for a copy of the tiny world.
        gold: Model trained without the removed concepts, or a folder of its denoiser alone, which is then used with the
            original's text encoder and decoder.

    Raises:
        InputError: No removal stands in the ledger, the removed concepts or the original of a model are missing, or
            they are given for a ledger; or the gold is none, see `golds.gold_of` and `golds.check_measures`.
        LedgerError: The file of a standing removal is missing or was changed.
        BaseMismatchError: The model that the ledger names is no longer its base.
    """
    if is_ledger(name):
        for option, value in (("--removed", list(removed)), ("--original", original)):
            if value:
                raise InputError(
                    f"{option}: expected none for a ledger, which records it, got {value!r}. Leave it out."
                )
        source = _source_of_ledger(name, load)
    else:
        _check_place(name, removed=bool(removed))
        source = _source_of_model(name, load, tuple(dict.fromkeys(removed)), original)
    if gold is None:
        return source
    return replace(source, variants=(*source.variants, _gold(gold, source, load)))


def _gold(name: str, source: Source, load: Loader) -> Variant:
    gold = gold_of(name, source.original, load)
    measured = [variant for variant in source.variants if variant.name in (ERASED, ORIGINAL)]
    check_measures([*measured, gold.variant], {GOLD: gold.without}, source.removed)
    said = (
        f"trained without {', '.join(gold.without)}" if gold.without else "no recipe says without what it was trained"
    )
    return replace(gold.variant, about=f"{name}: {said}")


def _source_of_ledger(name: str, load: Loader) -> Source:
    ledger = Ledger.open(name)
    concepts = tuple(concept for entry in ledger.standing for concept in entry.concepts)
    targets = tuple(dict.fromkeys(concept.target for concept in concepts))
    if not targets:
        raise InputError(f"{name}: expected a ledger in which a removal stands, got one without. Remove something.")
    ledger.check_whole()  # a row that is in a cache would hide a damaged file
    pipe = load(ledger.base.name)
    ledger.check_base(backbone_of(pipe).fingerprint(), ledger.base.name)
    erased = Variant(
        name=ERASED,
        pipe=pipe,
        about=f"{name}: {', '.join(f'{e.id} by {e.shown_method}' for e in ledger.standing)}",
        applied=lambda: ledger.applied_to(pipe),
        edit=ledger.state(),
        folder=ledger.path / "evaluations" / "pictures",
    )
    return Source(
        title=f"{Path(name).name}: {', '.join(targets)}",
        variants=(erased, *reference_variants(pipe, targets)),
        removed=targets,
        folder=ledger.path / "evaluations",
        original=ledger.base.name,
        concepts=concepts,
    )


def _check_place(name: str, *, removed: bool) -> None:
    """Refuse a path at which there is neither a ledger nor a model, where it is not the Hub that has to know.

    Args:
        name: Folder of a ledger, or a model.
        removed: Whether removed concepts are named, without which it can be no model of the Hub.

    Raises:
        InputError: It is such a path.
    """
    path = Path(name)
    if not name.strip():
        got = f"{name!r}"
    elif profile_of(name).folder is not None or holds_model(path):
        return
    elif path.is_dir():
        got = f"{name!r}, {'a folder with neither' if any(path.iterdir()) else 'an empty folder'}"
    elif path.exists():
        got = f"{name!r}, a file"
    elif removed:
        return
    else:
        got = f"{name!r}, where there is no folder"
    or_hub = "" if path.exists() else " Of a model of the Hub, name what was removed: --removed cat."
    raise InputError(
        f"source: expected the folder of a ledger (ledger.json) or of a model (model_index.json), got {got}."
        f" Check the path.{or_hub}"
    )


def _source_of_model(name: str, load: Loader, removed: tuple[str, ...], original: str | None) -> Source:
    if not removed:
        raise InputError(
            f"--removed: expected the concepts removed from {name!r}, got none. Name them: --removed cat, or give a"
            " ledger."
        )
    base = original or DEFAULT_MODEL
    pipe = load(base)
    variants = reference_variants(pipe, removed)
    if name != base:
        erased = load(name)
        # Of a model that was named, words may have been added to the text encoder.
        shapes = _shapes if original is None else _denoiser_shapes
        if shapes(erased) != shapes(pipe):
            got = "none, and it is not the tiny world" if original is None else f"{base!r}, whose layers are others"
            raise InputError(
                f"--original: expected the model that {name!r} was made from, got {got}. Name it: --original MODEL."
            )
        variants.insert(0, Variant(name=ERASED, pipe=erased, about=f"the model {name}"))
    return Source(
        title=f"{Path(name).name}: {', '.join(removed)}",
        variants=tuple(variants),
        removed=removed,
        folder=_new_folder(name, removed),
        original=base,
        concepts=parse({"model": base, "concepts": [{"target": target} for target in removed]}).concepts,
    )


def _new_folder(model: str, removed: Sequence[str]) -> Path:
    """Return the folder of an evaluation, another one for other names and for models of one name in two places."""
    place = str(Path(model).resolve()) if Path(model).is_dir() else model
    name = Path(place).name
    part = name if name == place else f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    return Path("erasure-runs") / f"evaluation-{part}-{distinct_slug(' '.join(removed), 48, 'nothing')}"


@checks_arguments
def benchmark_of(
    name: str, source: Source, *, suite: str | None = None, lists: Sequence[Path] = (), settings: Sequence[str] = ()
) -> Benchmark:
    """Return a benchmark by name.

    Args:
        name: See `benchmarks.benchmark_names`.
        source: Source of the evaluation.
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
    fixed: dict[str, Any] = dict(zip(kind.lists, lists, strict=True))
    known = [field.name for field in fields(kind)]
    if "removed" in known:
        # A concept may have been removed twice: by two methods, or by a synonym.
        profile = profile_of(kind.profile)
        targets = (profile.canonical(removed) or removed for removed in source.removed)
        fixed["removed"] = list(dict.fromkeys(targets))
    chosen: dict[str, Any] = {}
    for assignment in settings:
        chosen = override(chosen, assignment, "limit=1000")
    for key in chosen:
        if key not in known or key in fixed:
            raise unknown_name(f"{name} setting", key, [field for field in known if field not in fixed])
    if suite is not None and not kind.suites:
        raise InputError(f"--suite: expected none for {name}, got {suite!r}. The list says how many images there are.")
    if kind.suites and not (suite is None and "total" in chosen):
        if "total" in chosen:
            raise InputError(f"--suite: expected none beside --set total, got {suite!r}. Give one of them.")
        if (size := suite or "quick") not in kind.suites:
            raise unknown_name("suite", size, kind.suites)
        fixed["total"] = kind.suites[size]
    return with_settings(kind, {**fixed, **chosen}, where="--set ")


@checks_arguments
def metrics_of(benchmark: Benchmark, device: str, classifier: str | None = None) -> Metrics:
    """Return the metrics of a benchmark.

    Args:
        benchmark: Benchmark of the images.
        device: Device of the metrics.
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


@checks_arguments
def sampler_of(benchmark: Benchmark, source: Source) -> SamplingSettings:
    """Return the sampling settings: the model's own defaults for a benchmark of its concepts, else the benchmark's."""
    if benchmark.profile and benchmark.name == profile_of(source.original).data.benchmark:
        return SamplingSettings.of(source.original)
    return benchmark.sampler()


@checks_arguments
def attack_of(name: str, settings: Sequence[str]) -> Attack | SampledProbe:
    """Return an attack or a probe by name, with settings as key=value.

    Raises:
        UnknownNameError: There is no such attack or probe, or it has no such setting.
        InputError: A value is out of range.
    """
    kinds: dict[str, type[Attack] | type[SampledProbe]] = {**ATTACKS.classes(), **sampled_probes()}
    if name not in kinds:
        raise unknown_name("attack", name, kinds)
    return with_assignments(kinds[name], settings, example="tokens=8")


@checks_arguments
def judges_of(source: Source, device: str) -> tuple[Judge, Judge | None]:
    """Return the judge that decides if a concept is back, and an independent second one; None without a second.

    Raises:
        InputError: The model's images have no judge.
    """
    names = [name for concept in source.concepts for name in (concept.target, *concept.preserve)]
    judges = profile_of(source.original).judges(device, names)
    if not judges:
        raise InputError(
            "attack: expected CLIP weights in the local cache to judge images with, got none."
            f" Run `hf download {CLIP_WEIGHTS[0]}`."
        )
    return judges[0], judges[1] if len(judges) > 1 else None


def _shapes(pipe: DiffusionPipeline) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in backbone_of(pipe).parameters(lambda name: True).items()}


def _denoiser_shapes(pipe: DiffusionPipeline) -> dict[str, tuple[int, ...]]:
    sites = backbone_of(pipe).sites()
    return {name: shape for name, shape in _shapes(pipe).items() if name in sites}
