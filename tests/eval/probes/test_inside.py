"""Probes that look at side effects: attention that is captured, and concepts that surface in unrelated images."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.errors import InputError
from erasure.eval.attacks.unlearn_diff import UnlearnDiff
from erasure.eval.probes import Models, Subject, probe_class
from erasure.eval.probes.attention import Attention, head_masses
from erasure.eval.probes.hidden import Hidden
from erasure.eval.probes.linear_regeneration import LinearRegeneration
from erasure.eval.probes.priming import Priming
from erasure.eval.protocols.audit.record import Judged
from erasure.eval.protocols.audit.results import ConceptAudit, ProbeResult
from erasure.eval.protocols.audit.rows import ERASED, GOLD, ORIGINAL
from erasure.eval.stats.paired import paired_bootstrap
from erasure.profile import profile_of
from tests.contract.test_probes import _Open, aim
from tests.eval.world import pipeline
from tests.tiny import sd1
from tests.tiny_families import pixart

AIM = aim(profile_of("tinyworld"))


def attention_readings(probe: Attention, subject: Any, original: Any) -> dict[str, list[float]]:
    material = probe.material(Models(original=lambda: _Open(original)), AIM)
    outcomes = probe.outcomes(Subject(pipe=subject, aim=AIM, material=material))
    return {outcome.part: list(outcome.values) for outcome in outcomes}


def test_the_original_has_all_its_mass_and_captures_nothing() -> None:
    readings = attention_readings(Attention(prompts=2), pipeline(), pipeline())
    assert all(0 < mass < 1 for mass in readings["mass"])
    assert readings["captured"] == [0, 0]


def test_without_a_model_that_never_had_the_word_its_attention_has_no_residue() -> None:
    def judged(value: float) -> list[Judged]:
        return [Judged(dose=1.0, part="mass", label="reading", values=(value, value + 0.01))]

    rows = {ERASED: judged(0.05), ORIGINAL: judged(0.1)}
    about: dict[str, Any] = {"name": "attention", "access": "inside", "about": "", "unit": "", "settings": {}}
    assert ProbeResult(outcomes=rows, **about).strongest is None
    strongest = ProbeResult(outcomes={**rows, GOLD: judged(0.05)}, **about).strongest
    assert strongest is not None
    assert strongest.residue is not None
    assert strongest.residue.value == pytest.approx(0)


def test_heads_that_turn_to_the_word_are_counted() -> None:
    pipe, changed = sd1(), sd1()
    backbone = backbone_of(changed)
    with torch.no_grad():
        weights = backbone.parameters(backbone.sites(("cross.q", "cross.k")).__contains__)
        for weight in weights.values():
            weight.mul_(30)  # every head looks at few words only
    readings = attention_readings(Attention(prompts=2), changed, pipe)
    assert max(readings["captured"]) > 0
    assert max(readings["captured"]) <= 1


def test_a_prompt_without_the_words_has_no_mass() -> None:
    backbone = backbone_of(pipeline())
    noisy = torch.zeros(4, 1, *backbone.latent_shape())
    assert float(head_masses(backbone, ["a dog"], noisy, [Concept(target="cat")]).sum()) == 0
    masses = head_masses(backbone, ["a cat"], noisy, [Concept(target="cat")])
    assert masses.shape[:2] == (4, 1)
    assert float(masses.min()) > 0


def test_unrelated_prompts_name_neither_concept_nor_anchor() -> None:
    aimed = replace(AIM, concept=replace(AIM.concept, anchor="dog"))
    pairs = Priming(images=6).unrelated(aimed)
    assert len(pairs) == len(set(pairs)) == 6
    assert {prompt for prompt, _ in pairs} == {"a tree", "a photo of a tree", ""}
    parts = [outcome.part for outcome in Priming(images=2).outcomes(Subject(pipe=pipeline(), aim=aimed))]
    assert parts == ["ghost", "anchor"]
    with pytest.raises(InputError, match="priming: expected kept concepts beside 'cat', got none"):
        Priming().unrelated(replace(aimed, kept=()))


def test_a_side_effect_is_a_difference_and_no_residue() -> None:
    def judged(rate: float) -> list[Judged]:
        values = tuple(float(i < rate * 100) for i in range(100))
        return [Judged(dose=1.0, part="anchor", label="reading", values=values, side_effect=True)]

    outcomes = {ERASED: judged(0.3), ORIGINAL: judged(0.1)}
    result = ProbeResult(name="priming", access="inside", about="", unit="", settings={}, outcomes=outcomes)
    assert result.strongest is None
    assert result.side_effect is not None
    values = (outcomes[ORIGINAL][0].values, outcomes[ERASED][0].values)
    assert result.side_effect.difference == paired_bootstrap(*values)
    assert result.side_effect.difference.value == pytest.approx(0.2)
    assert result.side_effect.difference.low > 0
    audit = ConceptAudit(concept="cat", probes={"priming": result}, gold="g", untested=())
    assert "a side effect: priming, anchor is up by 20 points" in audit.verdict
    assert result.as_json()["readings"][0]["difference"]["value"] == pytest.approx(0.2)


@pytest.mark.parametrize("family", [sd1, pixart])
def test_keys_are_read_as_their_layers_read_them(family: Callable[[], Any]) -> None:
    pipe, aimed = family(), replace(AIM, sampling=replace(AIM.sampling, steps=2))
    probe = Hidden(**Hidden.quick)
    material = probe.material(Models(original=lambda: _Open(pipe)), replace(aimed, profile=profile_of("some/model")))
    parts = {outcome.part: outcome for outcome in probe.outcomes(Subject(pipe=pipe, aim=aimed, material=material))}
    assert list(parts["keys"].values) == pytest.approx([1.0] * len(parts["keys"].values), abs=1e-4)
    assert (parts["density"].floor, parts["link"].floor) == (None, 0.0)


def test_regeneration_is_of_states_that_the_projections_read() -> None:
    with pytest.raises(
        InputError, match="linear-regeneration: expected projections that read the text encoder's states"
    ):
        LinearRegeneration().material(Models(original=lambda: _Open(pixart())), AIM)


def test_the_audit_can_make_the_official_search() -> None:
    probe = probe_class("unlearn-diff")
    assert probe(relaxation="sampled").attack(2000.0) == UnlearnDiff()  # type: ignore[attr-defined, call-arg]
    few = probe(relaxation="sampled").attack(20.0)  # type: ignore[attr-defined, call-arg]
    assert (few.timesteps, few.rounds) == (20, 1)
    assert probe().attack(40.0) == UnlearnDiff(relaxation="mixture", rounds=40)  # type: ignore[attr-defined]
