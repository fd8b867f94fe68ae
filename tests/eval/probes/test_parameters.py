"""Carriers of a concept: their scores, their weights, and the check in the original."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.eval.probes import MissingError, Models, Subject
from erasure.eval.probes.parameters import Parameters, highest, random_others, separation, unit_vectors
from erasure.profile import ModelProfile, profile_of
from tests.contract.test_probes import _Open, aim
from tests.eval.world import oracle, pipeline

AIM = aim(profile_of("tinyworld"))
PROBE = Parameters(**Parameters.quick)


def readings(edited: Any) -> dict[str, list[float]]:
    material = PROBE.material(Models(original=lambda: _Open(pipeline())), AIM)
    outcomes = PROBE.outcomes(Subject(pipe=edited, aim=AIM, material=material, judge=oracle()))
    return {outcome.part: list(outcome.values) for outcome in outcomes}


def test_the_original_has_all_of_its_carriers_as_they_were() -> None:
    values = readings(pipeline())
    assert values["cosine"] == pytest.approx([1.0] * len(values["cosine"]))
    assert set(values["length"]) == {1.0}
    assert set(values["again"]) == {1.0}
    units = sum(map(len, unit_vectors(backbone_of(pipeline())).values()))
    assert len(values["again"]) == round(0.1 * units)


def test_units_that_are_turned_around_no_longer_point_where_they_did() -> None:
    pipe = copy.copy(pipeline())
    pipe.unet = copy.deepcopy(pipe.unet)
    backbone = backbone_of(pipe)
    roles = ("cross.out", "cross.v", "ff.out", "ff.in")
    with torch.no_grad():
        for weight in backbone.parameters(backbone.sites(roles).__contains__).values():
            if weight.ndim == 2:
                weight.neg_()
    values = readings(pipe)
    assert values["cosine"] == pytest.approx([-1.0] * len(values["cosine"]))
    assert set(values["length"]) == {0.0}, "moved by twice their length"


def test_a_unit_has_the_rows_that_make_it() -> None:
    backbone = backbone_of(pipeline())
    vectors = unit_vectors(backbone)
    weights = {name: p.data for name, p in backbone.parameters(lambda name: "weight" in name).items()}
    name = next(name for name in vectors if "attn2.to_out" in name)
    value = weights[name.replace("to_out.0", "to_v")]
    torch.testing.assert_close(vectors[name], torch.cat([weights[name].T, value], dim=1))
    gated = next(name for name in vectors if "ff.net.2" in name)
    into = weights[gated.replace("net.2", "net.0.proj")]
    half = len(into) // 2
    expected = torch.cat([weights[gated][:, 3], into[3], into[half + 3]])
    torch.testing.assert_close(vectors[gated][3], expected)


def test_scores_are_standardised_and_the_highest_of_all_layers_are_carriers() -> None:
    target, sibling = torch.tensor([[3.0, 1.0, 5.0], [5.0, 3.0, 5.0]]), torch.tensor([[1.0, 1.0, 2.0], [3.0, 3.0, 2.0]])
    assert separation(target, sibling).tolist() == [2.0, 0.0, 0.0], "a unit that never varies has no score"
    scores = {"a": torch.tensor([0.1, 0.9, 0.3]), "b": torch.tensor([0.8, 0.2])}
    carriers = highest(scores, 0.4)
    assert {name: mask.tolist() for name, mask in carriers.items()} == {"a": [False, True, False], "b": [True, False]}
    others = random_others(carriers, torch.Generator().manual_seed(0))
    assert {name: int(mask.sum()) for name, mask in others.items()} == {"a": 1, "b": 1}
    assert not any(bool((mask & carriers[name]).any()) for name, mask in others.items())


def test_a_model_without_carriers_says_so() -> None:
    strict = replace(PROBE, others=1.0)
    models = Models(original=lambda: _Open(pipeline()))
    with pytest.raises(MissingError, match=r"units that carry 'cat' in the original: none were found.*10 % \(0.00, 0"):
        strict.material(models, AIM)
    with pytest.raises(MissingError, match="expected a sibling of the concept"):
        PROBE.material(models, replace(AIM, siblings=()))

    class Blind(ModelProfile):
        def judges(self, device: str = "cpu", names: Any = ()) -> list[Any]:
            return []

    with pytest.raises(MissingError, match="a judge of the images, to check the carriers"):
        PROBE.material(models, replace(AIM, profile=Blind()))
