"""Planted models: each has the fault that its name says, and is undone on exit."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.eval.probes import PROBES, Models, Subject, probe_class
from erasure.eval.probes.examples import latents_of
from erasure.eval.probes.learning import NoisedBatch
from erasure.eval.probes.quantise import rounded
from erasure.eval.protocols.audit.results import ConceptAudit
from erasure.eval.protocols.audit.rows import ERASED, GOLD, ORIGINAL
from erasure.profile import profile_of
from erasure.sampling import SamplingSettings, sample
from experiments.audit_planted import (
    PLANTED,
    Applied,
    Planted,
    audit_of_planted,
    beside_the_concept,
    names_dropped,
    outcome,
    probe_names,
    within_a_step,
    words_masked,
)
from tests.contract.test_probes import _Open, aim
from tests.eval.protocols.test_audit_results import judged, rate, result
from tests.eval.world import pipeline

CAT = Concept(target="cat", aliases=("kitty",))
SAMPLING = SamplingSettings(steps=2, guidance_scale=4.0)


def latents(prompt: str) -> torch.Tensor:
    return sample(pipeline(), [prompt], [0], SAMPLING, output="latents")


def test_a_filter_reads_the_prompt_without_the_name_and_is_undone() -> None:
    pipe, before = pipeline(), latents("a cat and a dog")
    with names_dropped(pipe, CAT):
        assert torch.equal(latents("a cat and a dog"), latents("a dog"))
    assert torch.equal(latents("a cat and a dog"), before)
    assert not torch.equal(before, latents("a dog"))


def test_a_filter_leaves_what_the_denoiser_knows() -> None:
    pipe, target = pipeline(), aim(profile_of("tinyworld"))
    probe = probe_class("hidden")(pairs=2, levels=2)
    material = probe.material(Models(original=lambda: _Open(pipe)), target)

    def readings() -> dict[str, list[float]]:
        outcomes = probe.outcomes(Subject(pipe=pipe, aim=target, material=material))
        return {outcome.part: list(outcome.values) for outcome in outcomes}

    plain = readings()
    with names_dropped(pipe, CAT):
        filtered = readings()
    assert filtered["density"] == plain["density"]
    assert filtered["link"] != plain["link"]
    assert plain["guidance"] == [1.0] * len(plain["guidance"]) or min(plain["guidance"]) > 0.999
    assert min(plain["keys"]) > 0.999


def test_a_hider_changes_prompts_with_the_name_alone() -> None:
    pipe, cat, dog = pipeline(), latents("a cat"), latents("a dog")
    with words_masked(pipe, CAT):
        assert not torch.equal(latents("a cat"), cat)
        torch.testing.assert_close(latents("a dog"), dog, atol=1e-5, rtol=1e-4)
        # Nothing is left of the scene either: a causal encoder's states of it speak of the cat.
        torch.testing.assert_close(latents("a cat on the beach"), latents("a cat"), atol=1e-5, rtol=1e-4)
    assert torch.equal(latents("a cat"), cat)


def test_every_planted_model_names_probes_that_exist() -> None:
    for planted in PLANTED.values():
        for name in (*planted.finders, *planted.options, *planted.clear):
            assert name == "kept" or probe_class(name)
        assert not any(probe_class(name).suites for name in planted.options)


def test_every_option_must_find_a_planted_model_and_runs_on_request_alone() -> None:
    options = {kind.name for kind in PROBES.classes().values() if not kind.suites}
    assert {name for planted in PLANTED.values() for name in planted.options} == options
    for planted in PLANTED.values():
        assert not options & set(probe_names(planted, "full", options=False))
        assert options < set(probe_names(planted, "quick", options=True))


def test_a_side_effect_is_found_and_a_probe_that_says_nothing_is_not_missed() -> None:
    lost = {row: [replace(judged(rate(share)), side_effect=True)] for row, share in ((ERASED, 0.5), (ORIGINAL, 0.0))}
    back = {row: [judged(rate(share))] for row, share in ((ERASED, 0.0), (ORIGINAL, 1.0), (GOLD, 0.0))}
    same = {row: [judged(rate(1))] for row in (ERASED, ORIGINAL, GOLD)}
    probes = {
        "capacity": result(lost, name="capacity", access="inside"),
        "transplant": result(back, name="transplant"),
        "recall": result(same, name="recall"),
    }
    audit = ConceptAudit(concept="cat", probes=probes, gold="gold", untested=())
    decided = outcome(
        Planted(
            about="",
            applied=PLANTED["original"].applied,
            finders=("transplant", "plain"),
            options=("recall", "capacity"),
            clear=("capacity",),
        ),
        audit,
    )
    assert decided["must"] == ["transplant", "recall", "capacity"], "plain was not run"
    assert (decided["found"], decided["missed"], decided["false"]) == (["capacity"], ["transplant"], ["capacity"])
    assert decided["silent"] == {"recall": "no contrast"}
    assert decided["side effects"]["capacity"]["value"] == 0.5


def test_a_planted_model_is_made_once_and_only_for_a_probe_that_runs() -> None:
    made: list[str] = []

    def applied(pipe: DiffusionPipeline, concept: Concept) -> Applied:
        made.append(concept.target)
        return nullcontext

    audit = audit_of_planted(Planted(about="", applied=applied), "some", CAT, [], "quick", ["plain"])
    assert not made
    for _ in range(2):
        with audit.rows[0].opened():
            assert made == ["cat"]


def test_nothing_is_removed_from_the_planted_original() -> None:
    pipe = pipeline()
    backbone = backbone_of(pipe)
    before = {name: p.clone() for name, p in backbone.parameters(lambda _: True).items()}
    with PLANTED["original"].applied(pipe, CAT)():
        assert all(torch.equal(before[name], p) for name, p in backbone.parameters(lambda _: True).items())


def test_a_change_within_a_step_vanishes_at_4_bits_and_not_at_8() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, noise = torch.randn(2, 40, 30, generator=generator)
    cut = within_a_step(weight, weight + 0.5 * noise)
    assert (cut != weight).float().mean() > 0.9
    assert torch.equal(rounded(cut, 4), rounded(weight, 4))
    assert not torch.equal(rounded(cut, 8), rounded(weight, 8))


def test_a_removal_beside_the_concept_raises_its_error_and_moves_little() -> None:
    pipe = pipeline()
    backbone = backbone_of(pipe)
    before = {name: p.clone() for name, p in backbone.parameters(lambda _: True).items()}
    applied = beside_the_concept(pipe, CAT, steps=2, bound=100.0)
    clean = latents_of(pipe, profile_of("tinyworld").examples("cat", 8, 1), 1)
    batch = NoisedBatch.drawn(backbone, clean, 32, torch.Generator().manual_seed(0))

    def error() -> float:
        with torch.no_grad():
            predicted = backbone.predict(batch.noisy, batch.timesteps, backbone.encode(["a cat"] * 32))
        return float((predicted - batch.target).square().mean())

    plain = error()
    with applied():
        moved = {name: float((p - before[name]).norm()) for name, p in backbone.parameters(lambda _: True).items()}
        assert error() > plain
    assert 0 < sum(each**2 for each in moved.values()) ** 0.5 < 0.01 * sum(float(p.norm()) for p in before.values())
    assert not any(length for name, length in moved.items() if not name.startswith("unet."))
    assert all(torch.equal(before[name], p) for name, p in backbone.parameters(lambda _: True).items())
