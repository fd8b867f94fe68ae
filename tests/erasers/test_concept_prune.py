"""ConceptPrune: the mask of a row, its union over steps, and what the edit leaves alone."""

from typing import Any

import pytest
import torch

from erasure import Concept, ConceptPrune
from erasure.backbones import backbone_of
from erasure.backbones.layer_readings import watched_inputs
from erasure.errors import InputError
from erasure.training.context import FitContext
from tests import tiny

CAT = Concept(target="cat")
QUICK: dict[str, Any] = {"pairs": 2, "steps": 2, "sample_steps": 2, "share": 0.1}


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scores_are_sizes_of_weights_times_norms_of_inputs() -> None:
    weight = torch.tensor([[1.0, -3, 2, 0.5], [2, 2, -2, 2]])
    target, base = torch.tensor([[2.0, 1, 2, 8]]).double(), torch.tensor([[1.0, 1, 1, 9]]).double()
    # Scores of the first row with the concept: 2, 3, 4, 4; without it: 1, 3, 2, 4.5.
    mask = ConceptPrune(share=0.5).skilled(weight, target, base)
    # Those of the second: 4, 2, 4, 16 and 2, 2, 2, 18: of the two largest only one is above, of equal ones either.
    assert mask[0].tolist() == [False, False, True, False]
    assert mask[1, [0, 2]].sum() == 1
    assert not mask[1, [1, 3]].any()
    assert torch.equal(ConceptPrune(share=0.5).skilled(10 * weight, target, base), mask)
    assert not ConceptPrune(share=1.0).skilled(weight, target, target).any()


def test_no_row_loses_more_than_its_share_and_steps_add_up() -> None:
    weight, target, base = random(0, 6, 40) - 0.5, random(1, 5, 40), random(2, 5, 40)
    eraser = ConceptPrune(share=0.06)
    each = torch.stack([eraser.skilled(weight, target[i : i + 1], base[i : i + 1]) for i in range(5)])
    assert each.sum(-1).max() <= 3  # the next whole number above 2.4
    assert torch.equal(eraser.skilled(weight, target, base), each.any(0))
    assert torch.equal(ConceptPrune(share=0.06, agreement=1.0).skilled(weight, target, base), each.all(0))
    most = ConceptPrune(share=0.06, agreement=0.5).skilled(weight, target, base)
    assert torch.equal(most, each.sum(0) > 2.5)


def test_norms_over_batches_are_those_of_all_rows_at_once() -> None:
    rows = random(0, 30, 8) - 0.5
    for eraser in (ConceptPrune(), ConceptPrune(unit_rows=False)):
        parts = sum(eraser.squares(part) for part in rows.split(7))
        torch.testing.assert_close(parts, eraser.squares(rows))
    torch.testing.assert_close(ConceptPrune(unit_rows=False).squares(rows), rows.square().sum(0))
    assert float(ConceptPrune().squares(rows).sum()) == pytest.approx(30)


def test_the_edit_is_zeros_on_the_mask_and_nothing_else() -> None:
    backbone = backbone_of(tiny.sd1())
    edit = ConceptPrune(**QUICK).fit([CAT], FitContext(backbone=backbone))
    assert edit.changes
    assert {backbone.sites()[name].role for name in edit.changes} == {"ff.out"}
    for name, weight in backbone.parameters(edit.changes.__contains__).items():
        edited, zero = edit.edited(name, weight.detach()), edit.edited(name, weight.detach()) == 0
        assert 0 < zero.float().mean() < 0.2
        assert torch.equal(edited[~zero], weight.detach()[~zero])


def test_the_same_prompts_with_and_without_the_concept_prune_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    same = "erasure.training.word_attention.output_directions.anchored"
    monkeypatch.setattr(same, lambda template, concept: template.replace("{}", "cat"))
    edit = ConceptPrune(**{**QUICK, "pairs": 1}).fit([CAT], FitContext(backbone=backbone_of(tiny.sd1())))
    assert not edit.changes


def test_rows_of_the_unconditional_prompt_can_be_left_out() -> None:
    backbone: Any = backbone_of(tiny.sd1())
    context = FitContext(backbone=backbone)
    (name,) = list(backbone.sites(("ff.out",)))[:1]
    sums: list[dict[str, torch.Tensor]] = [{}, {}]
    for each, guidance_rows in zip(sums, (True, False), strict=True):
        eraser = ConceptPrune(**{**QUICK, "steps": 1}, guidance_rows=guidance_rows)
        eraser._add(each, ["a cat"], [name], context, 0)
    start = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), watched_inputs(backbone, [name]) as inputs:
        backbone.predict(start, backbone.schedule.timesteps(2)[0], backbone.unconditional())
    torch.testing.assert_close(
        sums[0][name] - sums[1][name], ConceptPrune().squares(inputs[name])[None], rtol=1e-3, atol=1e-5
    )


def test_more_steps_than_there_are_is_an_error() -> None:
    with pytest.raises(InputError, match=r"concept-prune.steps: expected at most sample_steps, 5, got 6"):
        ConceptPrune(steps=6, sample_steps=5)
