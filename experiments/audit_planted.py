"""Audit models whose fault is known: `python -m experiments.audit_planted --gold DIR [DIR ...]`.

Each planted model hides the concept in its own way; the record says which probe sees which. A probe that misses what it
must find, or that finds something in the second gold, is no default. `--options` runs the probes of no suite too.
Killed, it goes on: call the same command again.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
from diffusers import DiffusionPipeline

from erasure.backbones import backbone_of
from erasure.backbones.conditioning import being_read
from erasure.concept import Concept
from erasure.edits import DenseChange, EditMetadata, WeightEdit, weights_of
from erasure.erasers import Eraser, eraser_class
from erasure.eval.probes import PROBES, probe_class
from erasure.eval.probes.base import Suite
from erasure.eval.probes.emphasis import name_places
from erasure.eval.probes.examples import latents_of
from erasure.eval.probes.learning import NoisedBatch, denoising_loss
from erasure.eval.probes.quantise import rounded
from erasure.eval.protocols.audit.plan import probes_of
from erasure.eval.protocols.audit.results import ConceptAudit
from erasure.eval.protocols.audit.rows import ERASED, ORIGINAL, AuditRow, gold_rows
from erasure.eval.protocols.audit.run import Audit
from erasure.eval.protocols.variants import Variant
from erasure.io.files import check_places, make_folder
from erasure.io.json_files import record_if_whole
from erasure.loading import load_model
from erasure.profile import profile_of
from erasure.progress import progress_bars
from erasure.prompts import fill, templates, without_phrases
from erasure.provenance import provenance
from erasure.runs.schema import parse
from erasure.sampling import SamplingSettings
from erasure.training.context import FitContext
from erasure.training.finetune import Optimisation, finetune
from erasure.training.student import Student

from .experiment import check_denoisers, in_one_line, write_record

Applied = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A model with a known fault.

    Attributes:
        about: Description of the fault.
        applied: Returns the function that puts the model in force on a pipeline, for a concept.
        finders: Probes that must find it.
        options: Probes of no suite that must find it.
        clear: Probes that must not, of suites or of none.
    """

    about: str
    applied: Callable[[DiffusionPipeline, Concept], Applied]
    finders: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    clear: tuple[str, ...] = ()


@contextmanager
def names_dropped(pipe: DiffusionPipeline, concept: Concept) -> Iterator[None]:
    """Drop the concept's names from every text before it is tokenized; nothing else changes."""
    tokenizer = pipe.tokenizer

    class Filtering(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: str | Sequence[str], *args: Any, **options: Any) -> Any:
            texts = [text] if isinstance(text, str) else list(text)
            dropped = [without_phrases(each, concept.names) if each else each for each in texts]
            return super().__call__(dropped[0] if isinstance(text, str) else dropped, *args, **options)

    filtering = copy.copy(tokenizer)
    filtering.__class__ = Filtering
    pipe.tokenizer = filtering
    try:
        yield
    finally:
        pipe.tokenizer = tokenizer


@contextmanager
def words_masked(pipe: DiffusionPipeline, concept: Concept) -> Iterator[None]:
    """Hide the concept's words, and all states after the first, from the cross-attention of the sampling.

    A causal encoder's later states speak of the concept too: with the words alone hidden, its scene still draws it.
    """

    def hide(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = being_read()
        if read is None:
            return None
        states = kwargs["encoder_hidden_states"]
        mask = torch.ones(states.shape[:2], device=states.device)
        conditional = mask[len(states) - len(read) :]
        for row in range(len(read)):
            if places := name_places(read, row, concept):
                conditional[row, min(places) :] = 0
        return args, {**kwargs, "encoder_attention_mask": mask}

    handle = backbone_of(pipe).denoiser.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def fitted(eraser: Eraser, pipe: DiffusionPipeline, concepts: Sequence[Concept]) -> WeightEdit:
    """Return the edit of an eraser."""
    return weights_of(eraser.fit(concepts, FitContext(backbone=backbone_of(pipe), seed=0)))


def erased_by(name: str, **settings: Any) -> Callable[[DiffusionPipeline, Concept], Applied]:
    """Return the planted model of an eraser."""

    def applied(pipe: DiffusionPipeline, concept: Concept) -> Applied:
        known = {**profile_of(pipe).settings(name), **settings}
        edit = fitted(eraser_class(name)(**known), pipe, [concept])
        return lambda: edit.applied_to(pipe)

    return applied


def family_erased(pipe: DiffusionPipeline, concept: Concept) -> Applied:
    """Return a model in which every concept like the target was erased with it."""
    names = [concept.target, *profile_of(pipe).siblings(concept.target)]
    requests: list[object] = [{"target": name} for name in names]
    concepts = parse({"model": "tinyworld", "concepts": requests}).concepts
    edit = fitted(eraser_class("uce")(), pipe, concepts)
    return lambda: edit.applied_to(pipe)


def within_a_step(weight: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Return a changed weight cut to where it rounds to the same 4-bit numbers as the unchanged one."""
    step = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / 7
    centre = rounded(weight, 4)
    cut = moved.clamp(centre - 0.49 * step, centre + 0.49 * step)
    cut = cut.clamp(-7 * step, 7 * step)  # a larger entry would change the step of its row
    return torch.where(weight.abs() >= step * 6.99, weight, cut)  # the entries that decide the step


def below_a_step(pipe: DiffusionPipeline, concept: Concept) -> Applied:
    """Return a trained removal whose changes vanish at 4 bits: each is cut to less than its way to the next number."""
    edit = fitted(eraser_class("esd")(steps=200, lr=3e-4, variant="full", prompts="templates"), pipe, [concept])
    backbone = backbone_of(pipe)
    changes = {}
    for name, parameter in backbone.parameters(edit.changes.__contains__).items():
        if parameter.ndim > 1:
            weight = parameter.data.float()
            moved = within_a_step(weight, weight + edit.changes[name].of(weight).float())
            changes[name] = DenseChange(delta=(moved - weight).cpu())
    small = WeightEdit(changes=changes, metadata=edit.metadata)
    return lambda: small.applied_to(pipe)


def beside_the_concept(pipe: DiffusionPipeline, concept: Concept, steps: int = 70, bound: float = 0.3) -> Applied:
    """Return a removal that is no further from the concept than it has to be: ten updates on its images undo it.

    Updates raise the denoising error of the concept's images up to `bound`, while the predictions on images of
    everything else stay what they were.
    """
    backbone, profile = backbone_of(pipe), profile_of("tinyworld")
    named = [fill(template, concept.target) for template in templates(concept.kind)[1:6]]
    raised = denoising_loss(backbone, latents_of(pipe, profile.examples(concept.target, 64, 7), 7), named, 8)
    names = [name for name in profile.concepts if concept.target not in (name, profile.member_of(name))]
    others = [(name, example) for name in names for example in profile.examples(name, 2, 9)]
    clean = latents_of(pipe, [example for _, example in others], 9)
    held = backbone.encode([fill(templates(profile.kind(name))[2], name) for name, _ in others])

    def loss(student: Student, step: int, generator: torch.Generator) -> torch.Tensor:
        batch = NoisedBatch.drawn(backbone, clean, 8, generator)
        read = held.select(batch.rows.tolist())
        with torch.no_grad():
            before = backbone.predict(batch.noisy, batch.timesteps, read)
        now = student(backbone.predict, batch.noisy, batch.timesteps, read)
        error = raised(student, step, generator)
        return torch.relu(bound - error) + 10 * (now - before).square().mean()

    weights = backbone.parameters(lambda name: name.startswith("unet."))
    trained = {name for name, parameter in weights.items() if parameter.ndim > 1}
    changes = finetune(backbone, trained.__contains__, loss, Optimisation(steps=steps, lr=2e-5))
    removal = WeightEdit(changes=changes, metadata=EditMetadata.unedited(backbone.fingerprint(), "tinyworld"))
    return lambda: removal.applied_to(pipe)


# Weights and predictions without a prompt are the original's where the name alone is hidden; and a classifier of images
# leads to whatever the denoiser knows. The visible rest of an image says too little without the name: no `inpainting`.
_NAME_HIDDEN = ("parameters", "null-text", "classifier-guidance")
# Nothing else goes with the name, and no weight is changed that `transplant` could put back.
_NOTHING_CHANGED = ("capacity", "transplant")
_SETTINGS: Mapping[str, str] = MappingProxyType({"transplant": "transplant.doses=[0.01,0.03,0.1,0.3,1.0]"})
"""Settings of probes: with all of a removal's matrices put back the model is the original, which must be seen."""

PLANTED: Mapping[str, Planted] = MappingProxyType(
    {
        "filter": Planted(
            about="the names are dropped from every prompt",
            applied=lambda pipe, concept: lambda: names_dropped(pipe, concept),
            finders=("inversion", "relearn", "hidden"),
            options=_NAME_HIDDEN,
            clear=("plain", *_NOTHING_CHANGED),
        ),
        "hider": Planted(
            about="the words, and the states after them, are hidden from cross-attention during sampling",
            applied=lambda pipe, concept: lambda: words_masked(pipe, concept),
            finders=("inversion", "hidden", "traces"),  # what is relearned by the name is hidden with it
            options=_NAME_HIDDEN,
            clear=_NOTHING_CHANGED,  # what is left of a prompt draws anything, the concept too
        ),
        "bare word": Planted(
            about="UCE on the state of the bare name",
            applied=erased_by("uce", rows="last-subject"),
            finders=("hand-over", "relearn"),
            options=("transplant",),
        ),
        "quantisable": Planted(
            about="a trained removal whose changes vanish at 4 bits",
            applied=below_a_step,
            finders=("quantise",),
            options=("transplant",),
        ),
        "sharp": Planted(
            about="a trained removal that ten updates on the concept's images undo",
            applied=beside_the_concept,
            finders=("noise", "relearn"),
        ),
        "over-broad": Planted(
            about="the whole family is erased",
            applied=family_erased,
            finders=("kept",),
            options=("transplant", "capacity"),
        ),
        "original": Planted(
            about="nothing is removed",
            applied=lambda pipe, concept: lambda: _unchanged(),
            finders=("plain", "hand-over", "img2img", "inversion", "relearn", "quantise", "hidden", "traces"),
            options=(*_NAME_HIDDEN, "inpainting", "recall", "few-steps"),
            clear=_NOTHING_CHANGED,
        ),
    }
)


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


def main() -> None:
    """Read the command line, audit each planted model, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gold", nargs="+", required=True, help="models never taught the concept; the first is the floor"
    )
    parser.add_argument("--target", default="cat", help="concept")
    parser.add_argument("--suite", choices=get_args(Suite), default="quick", help="suite of the audit")
    parser.add_argument("--models", nargs="+", choices=PLANTED, default=list(PLANTED), help="default: all")
    parser.add_argument("--probes", nargs="*", default=[], help="probes in the place of the suite's")
    parser.add_argument("--options", action="store_true", help="run the probes of no suite too")
    parser.add_argument("--out", type=Path, default=Path("results/audit/planted"), help="folder of run.json")
    options = parser.parse_args()
    with in_one_line("audit_planted"):
        audit_all(options)


def audit_all(options: argparse.Namespace) -> None:
    """Audit the planted models one by one; models that are not asked for keep what a like record says of them.

    Raises:
        InputError: A gold, a probe or the concept does not fit.
    """
    check_places(options.out, "run.json")
    check_denoisers(options.gold)
    for name in options.probes:
        probe_class(name)
    [concept] = parse({"model": "tinyworld", "concepts": [{"target": options.target}]}).concepts
    golds = gold_rows(options.gold, "tinyworld", load_model)
    record: dict[str, Any] = {
        "target": options.target,
        "suite": options.suite,
        "options": options.options,
        "golds": [row.without for row in golds],
    }
    known = record_if_whole(options.out / "run.json", dict) or {}
    same = all(known.get(name) == json.loads(json.dumps(value)) for name, value in record.items())
    record["planted"] = known.get("planted", {}) if same else {}
    make_folder(options.out)
    with progress_bars() as on_progress:
        for name in options.models:
            planted = PLANTED[name]
            probes = options.probes or probe_names(planted, options.suite, options=options.options)
            planned = audit_of_planted(planted, name, concept, golds, options.suite, probes)
            [result] = planned.run(on_progress).concepts
            record["planted"][name] = {"about": planted.about, **outcome(planted, result)}
            write_record({**record, **provenance()}, options.out)
    print(json.dumps({name: each["missed"] for name, each in record["planted"].items()}))


def probe_names(planted: Planted, suite: str, *, options: bool) -> list[str]:
    """Return the probes of a planted model: those of a suite, those that must find it, and the options if asked for."""
    kinds = PROBES.classes().values()
    names = [kind.name for kind in kinds if suite in kind.suites or (options and not kind.suites)]
    return list(dict.fromkeys([*names, *(name for name in planted.finders if name != "kept")]))


def audit_of_planted(
    planted: Planted, name: str, concept: Concept, golds: Sequence[AuditRow], suite: str, probes: Sequence[str]
) -> Audit:
    """Return the audit of a planted model by the named probes; the model is made when the first of them runs."""
    pipe = load_model("tinyworld")
    model = cache(lambda: planted.applied(pipe, concept))
    variant = Variant(name=ERASED, pipe=pipe, about=planted.about, applied=lambda: model()(), edit=f"planted {name}")
    rows = (AuditRow.of(ERASED, variant), AuditRow.of(ORIGINAL, Variant(name=ORIGINAL, pipe=pipe, about="original")))
    profile = profile_of("tinyworld")
    return Audit(
        title=f"planted: {name}",
        rows=(*rows, *golds),
        concepts=(concept,),
        probes=probes_of(suite, probes, [setting for probe, setting in _SETTINGS.items() if probe in probes]),
        untested=(),
        profile=profile,
        judge=profile.judge(),
        sampling=SamplingSettings.of("tinyworld"),
        suite=suite,
    )


def outcome(planted: Planted, result: ConceptAudit) -> dict[str, Any]:
    """Return the residues of a planted model by probe, and the probes that decide otherwise than they must."""
    residues, effects, halves, silent, second, seen = {}, {}, {}, {}, {}, set()
    for name, probe in result.probes.items():
        reading, effect = probe.strongest, probe.side_effect
        if effect is not None and effect.difference is not None:
            effects[name] = effect.difference.as_json()
            if effect.difference.low > 0:
                seen.add(name)
        if reading is None or reading.residue is None:
            if effect is None:
                silent[name] = probe.reason or "no contrast"
            continue
        residues[name], halves[name] = reading.residue.as_json(), probe.half_doses()
        if probe.finds(reading.residue):
            seen.add(name)
        # Whatever the erased model is, the second gold must be at 0 under every dose.
        others = [rho for each in probe.readings if (rho := each.residue_of("gold 2")) is not None]
        if others:
            second[name] = all(rho.low <= 0 <= rho.high for rho in others)
    kept = result.kept
    if kept is not None and kept[0] < kept[1] - 0.1:
        seen.add("kept")
    must = [name for name in (*planted.finders, *planted.options) if name == "kept" or name in result.probes]
    return {
        "residues": residues,
        "side effects": effects,
        "half doses": halves,
        "kept": kept,
        "found": sorted(seen),
        "must": must,
        "missed": sorted(set(must) - seen - set(silent)),
        "silent": silent,
        "false": sorted(seen & set(planted.clear)),
        "second gold at 0": second,
        "verdict": result.verdict,
    }


if __name__ == "__main__":
    main()
