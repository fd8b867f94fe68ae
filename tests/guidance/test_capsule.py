"""Capsules: the gate, targets one after another, layers that a fit left alone, and what it is fitted on."""

from typing import Any

import pytest
import torch

from erasure import CapsuleEraser, Concept, SamplingEdit
from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.guidance.capsule import CapsuleGuidance
from erasure.training.context import FitContext, TrainingTask
from erasure.training.objectives.signature import Signature
from tests import tiny

QUICK: dict[str, Any] = {"images": 2, "image_steps": 2}


def capsules(name: str, layer: str, direction: list[float], gate: list[float], **settings: Any) -> CapsuleGuidance:
    return CapsuleGuidance(
        concepts=(name,),
        targets=(name,),
        directions={layer: torch.tensor([[direction]])},
        gates={layer: torch.tensor([gate])},
        **settings,
    )


def test_an_open_gate_takes_the_direction_away_and_a_shut_one_leaves_it() -> None:
    one = capsules("a", "layer", [1.0, 0, 0], [1.0, 0.1, 0.0], sharpness=40.0)
    pixels = torch.tensor([[[3.0, 4, 0], [-2.0, 4, 1], [1.0, 2, 3]]])
    expected = torch.tensor([[[0.0, 4, 0], [-2.0, 4, 1], [0.5, 2, 3]]])  # at the threshold it is half open
    torch.testing.assert_close(one.steered("layer", pixels, 10.0), expected)
    half = capsules("a", "layer", [1.0, 0, 0], [1.0, 0.1, 0.0], sharpness=0.0, alpha=-2.0)
    torch.testing.assert_close(half.steered("layer", pixels, 10.0)[..., 0], torch.zeros(1, 3))


def test_several_targets_are_taken_one_after_another_by_name() -> None:
    one = capsules("b", "layer", [1.0, 0], [0.0, 1.0, -9.0])
    other = capsules("a", "layer", [0.6, 0.8], [0.0, 1.0, -9.0])
    pixels = torch.tensor([[[2.0, 1.0]]])
    (merged,) = CapsuleGuidance.merged([one, other])
    assert merged.targets == ("a", "b")
    expected = one.steered("layer", other.steered("layer", pixels, 1.0), 1.0)
    torch.testing.assert_close(merged.steered("layer", pixels, 1.0), expected)


def test_a_layer_that_a_fit_left_alone_stays_so() -> None:
    one = capsules("a", "first", [1.0, 0], [0.0, 1.0, -9.0])
    other = capsules("b", "second", [0.0, 1], [0.0, 1.0, -9.0])
    (merged,) = CapsuleGuidance.merged([one, other])
    pixels = torch.tensor([[[2.0, 1.0]]])
    torch.testing.assert_close(merged.steered("first", pixels, 1.0), one.steered("first", pixels, 1.0))
    torch.testing.assert_close(merged.steered("second", pixels, 1.0), other.steered("second", pixels, 1.0))


def test_the_fit_is_the_signatures_and_takes_a_share_of_the_layers() -> None:
    pipe = tiny.sd1()
    context = FitContext(backbone=backbone_of(pipe))
    concept = Concept(target="cat", preserve=("dog",))
    edit = CapsuleEraser(**QUICK, share=0.5).fit([concept], context)
    assert isinstance(edit, SamplingEdit)
    (guidance,) = edit.guidances
    assert isinstance(guidance, CapsuleGuidance)
    task = TrainingTask(context=context, requests=(concept,), trained=lambda name: False)
    gates = Signature(**QUICK, share=0.5).capsules(task)
    assert len(gates) == 2
    assert guidance.directions.keys() == guidance.gates.keys() == gates.keys()
    for layer, gate in gates.items():
        torch.testing.assert_close(guidance.directions[layer][0, 0], gate.direction)
        assert guidance.gates[layer].tolist() == [pytest.approx([gate.mean, gate.deviation, gate.threshold])]


def test_without_names_to_tell_it_apart_from_there_is_no_gate() -> None:
    with pytest.raises(InputError, match="expected concepts that preserve something, got none"):
        CapsuleEraser(**QUICK).fit([Concept(target="cat")], FitContext(backbone=backbone_of(tiny.sd1())))
