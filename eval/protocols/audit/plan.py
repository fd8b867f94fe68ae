"""The plan of an audit from the arguments of a command: rows, probes of a suite, judge."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from erasure.arguments import checks_arguments
from erasure.backbones import backbone_of
from erasure.backbones.usable import check_call
from erasure.errors import InputError, unknown_name
from erasure.judge import CLIP_WEIGHTS, Judge
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.registry import with_settings
from erasure.runs.overrides import override
from erasure.sampling import SamplingSettings

from ...attacks.base import Access
from ...probes import PROBES, Probe, probe_class
from ...probes.base import Suite
from ..sources import Loader, Source
from ..variants import ERASED as ERASED_VARIANT
from .rows import ERASED, ORIGINAL, PLAIN, AuditRow, check_golds, gold_rows
from .run import Audit


@checks_arguments
def audit_of(
    source: Source,
    load: Loader,
    *,
    suite: str = "quick",
    names: Sequence[str] = (),
    golds: Sequence[str] = (),
    settings: Sequence[str] = (),
    device: str = "cpu",
    seed: int = 0,
) -> Audit:
    """Return the audit that the arguments of a command ask for.

    Args:
        source: Erased model and its original.
        load: Function that loads a pipeline.
        suite: "quick", "standard" or "full".
        names: Probes in the place of the suite's.
        golds: Models that were never taught a removed concept, or folders of their denoisers.
        settings: Settings of probes, as probe.key=value.
        device: Device of the judge.
        seed: Seed of prompts, noise and searches, >= 0.

    Raises:
        UnknownNameError: There is no such suite, probe or setting.
        InputError: The model is the original or makes no images, a gold is of another world or no gold, or the judge
            does not know a concept.
    """
    first = source.variants[0]
    if first.name != ERASED_VARIANT:
        raise InputError(
            f"audit: expected a model with removed concepts, got the original {source.original!r}."
            " Name a ledger or an edited model."
        )
    probes = probes_of(suite, names, settings, source.original)
    check_call(backbone_of(first.pipe), SamplingSettings.of(source.original).steps, None, None)
    profile = profile_of(source.original)
    judge = _judge(source, device)
    rows = (*_compared(source), *gold_rows(golds, source.original, load))
    concepts = {concept.target: concept for concept in source.concepts}
    if golds:
        check_golds(rows, tuple(concepts.values()))
    return Audit(
        title=source.title,
        rows=rows,
        concepts=tuple(concepts.values()),
        probes=probes,
        untested=tuple(name for name in PROBES.names() if name not in probes),
        profile=profile,
        judge=judge,
        no_judge=f"a judge of the images: hf download {CLIP_WEIGHTS[0]}, or another of its sizes",
        sampling=SamplingSettings.of(source.original),
        suite=suite,
        seed=seed,
    )


@checks_arguments
def probes_of(
    suite: str, names: Sequence[str], settings: Sequence[str], model: str = DEFAULT_MODEL
) -> dict[str, Probe]:
    """Return the probes of a suite, or those named, the plain prompt first and the others by access level.

    Raises:
        UnknownNameError: There is no such suite, probe or setting, or a setting is of a probe that is not run.
        InputError: A value is out of range, such as an empty list of doses.
    """
    if suite not in get_args(Suite):
        raise unknown_name("suite", suite, get_args(Suite))
    kinds = [probe_class(name) for name in names] or [k for k in PROBES.classes().values() if suite in k.suites]
    levels = get_args(Access)
    order = sorted(kinds, key=lambda kind: (levels.index(kind.access), kind.name))
    chosen: dict[str, type[Probe]] = {PLAIN: probe_class(PLAIN), **{kind.name: kind for kind in order}}
    changes: Mapping[str, Any] = {}
    for assignment in settings:
        changes = override(changes, assignment, "quantise.doses=[8,4]")
    for name in changes:
        if name not in chosen:
            raise unknown_name("probe of this audit", name, chosen)
    for name, values in changes.items():
        if not isinstance(values, Mapping):
            raise InputError(f"--set: expected probe.key=value, got {name}={values!r}. Name the setting of the probe.")
    return {
        name: with_settings(
            kind,
            {**profile_of(model).settings(name), **suite_settings(kind, suite), **changes.get(name, {})},
            where=f"--set {name}.",
        )
        for name, kind in chosen.items()
    }


def suite_settings(kind: type[Probe], suite: str) -> Mapping[str, Any]:
    """Return the settings of a probe in a suite; its own where it is not part of it."""
    return next((settings for name, settings in kind.suites.items() if name == suite), {})


def _compared(source: Source) -> tuple[AuditRow, AuditRow]:
    """Return the rows of the erased model and of its original.

    Raises:
        InputError: They are the same model.
    """
    first = source.variants[0]
    original = next(variant for variant in source.variants if variant.name == ORIGINAL)
    rows = (AuditRow.of(ERASED, first), AuditRow.of(ORIGINAL, original))
    if not first.edit and rows[0].weights == rows[1].weights:
        raise InputError(
            f"audit: expected a model with removed concepts, got {first.about}, whose weights are those of the original"
            f" {source.original!r}. Name a ledger or an edited model."
        )
    return rows


def _judge(source: Source, device: str) -> Judge | None:
    """Return the judge that decides; None without one.

    Raises:
        InputError: It does not know a removed concept.
    """
    names = [name for concept in source.concepts for name in (concept.target, *concept.preserve)]
    judges = profile_of(source.original).judges(device, names)
    if not judges:
        return None
    for concept in source.concepts:
        if not judges[0].knows(concept.target):
            raise InputError(
                f"audit: expected a concept that the judge knows, got {concept.target!r}, unknown to {judges[0].name}."
                " Name what was removed as the model's world does: --removed."
            )
    return judges[0]
