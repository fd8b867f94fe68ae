"""STAMP: the closed form of one layer, order of layers, what it reads and what it leaves alone."""

from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import LowRankChange
from erasure.erasers.stamp import STAMP
from erasure.training.context import FitContext
from erasure.training.word_attention.layer_inputs import in_order_of_execution, inside, layer_inputs
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1(vocabulary="clip"))
CONTEXT = FitContext(backbone=BACKBONE)
CAT = Concept(target="cat", anchor="boat", preserve=("dog",))
QUICK = STAMP(images=2, places=2, rank=None, mask="none")


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean_of(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return one.T @ other / len(one)


def test_one_layer_is_the_least_squares_solution() -> None:
    weight, x, a, kept = random(0, 5, 6), random(1, 40, 6), random(2, 40, 6), random(3, 30, 6)
    eraser = STAMP(rank=None, reg=0.02, preserve_scale=0.7)
    change = eraser.change(weight, mean_of(x, x), mean_of(a, x), mean_of(kept, kept))
    edited = (weight + change.of(weight)).requires_grad_()
    reg = 0.02 * float((mean_of(x, x) + 0.7 * mean_of(kept, kept)).diagonal().mean())
    loss = (
        (x @ edited.T - a @ weight.T).square().sum() / 40
        + 0.7 * (kept @ (edited - weight).T).square().sum() / 30
        + reg * (edited - weight).square().sum()
    )
    (gradient,) = torch.autograd.grad(loss, edited)
    assert gradient.abs().max() < 1e-4  # the change is stored as float32


def test_an_anchor_that_is_the_target_changes_nothing() -> None:
    weight, x = random(0, 5, 6), random(1, 40, 6)
    change = STAMP(rank=None).change(weight, mean_of(x, x), mean_of(x, x), mean_of(x, x))
    assert change.norm < 1e-6


def test_a_rank_keeps_the_largest_directions() -> None:
    weight, x, a, kept = random(0, 5, 6), random(1, 40, 6), random(2, 40, 6), random(3, 30, 6)
    moments = mean_of(x, x), mean_of(a, x), mean_of(kept, kept)
    whole, low = (STAMP(rank=rank).change(weight, *moments) for rank in (None, 2))
    assert isinstance(low, LowRankChange)
    left = torch.linalg.svdvals(whole.of(weight))[2:]
    assert float((whole.of(weight) - low.of(weight)).norm()) == pytest.approx(float(left.norm()), rel=1e-4)


def test_the_layers_after_attention_change_in_the_order_of_a_pass() -> None:
    edit = QUICK.fit([CAT], CONTEXT)
    names = list(edit.changes)
    assert names == [f"{module}.weight" for module in dict.fromkeys(name.rpartition(".")[0] for name in names)]
    assert all(".attn2.to_out." in name for name in names)
    samples = QUICK._samples([CAT], CONTEXT)
    order = in_order_of_execution(BACKBONE, [name.removesuffix(".weight") for name in reversed(names)], samples.target)
    assert [f"{module}.weight" for module in order] == names
    assert "down_blocks" in names[0]
    assert "up_blocks" in names[-1]


def test_the_concepts_outputs_come_nearer_to_the_anchors() -> None:
    edit = QUICK.fit([CAT], CONTEXT)
    samples = QUICK._samples([CAT], CONTEXT)
    name, rows = next(iter(edit.changes)), slice(0, 4)
    weight = BACKBONE.parameters({name}.__contains__)[name].detach()
    module = name.removesuffix(".weight")
    x, a = (
        layer_inputs(BACKBONE, module, samples.target, rows, prompts)
        for prompts in (samples.target.conditioning, samples.anchor)
    )
    goal = a @ weight.T
    before, after = ((x @ each.T - goal).norm() for each in (weight, edit.edited(name, weight)))
    assert after < 0.9 * before


def test_one_layer_is_the_one_that_the_prompts_part_most() -> None:
    samples = QUICK._samples([CAT], CONTEXT)
    one = STAMP(images=2, places=2, mask="none", layers="one").fit([CAT], CONTEXT)
    (name,) = one.changes
    all_names = QUICK.fit([CAT], CONTEXT).changes
    differences = {each: samples.difference(each.removesuffix(".weight")) for each in all_names}
    assert differences[name] == max(differences.values())


def test_masks_of_the_latents_are_those_of_a_layers_pixels() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4] = True
    masks[1, :, :4] = True
    chosen = inside(torch.zeros(2, 16, 3), masks)
    assert chosen.view(2, 4, 4)[0, :2].all()
    assert not chosen.view(2, 4, 4)[0, 2:].any()
    assert chosen.view(2, 4, 4)[1, :, :2].all()
    assert chosen.sum() == 16
