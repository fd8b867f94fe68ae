"""MACE: refinement of the words beside a name, the loss of masked attention, fusion; the golden examples."""

from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.closed_form.coexisting import coexisting_rows
from erasure.closed_form.names import erased_pairs
from erasure.closed_form.problem import Row, Rows
from erasure.closed_form.readers import PromptPair
from erasure.closed_form.solve import solve
from erasure.concept import Concept
from erasure.edits import LowRankChange
from erasure.erasers.mace import MACE, fusion
from erasure.progress import Progress
from erasure.training.context import FitContext
from erasure.training.word_attention.masked import focal_density, masked_attention
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1(vocabulary="clip"))
CAT = Concept(target="cat", anchor="boat", preserve=("dog",))


def tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def row(label: str, state: Any, becomes: Any, weight: float = 1.0) -> Row:
    return Row(
        label=label, site=f"{label}|", state=tensor(state), weight=weight, anchor_label="a", anchor=tensor(becomes)
    )


W = tensor([[1, 0, 2], [0, 1, -1]])
LORAS = (tensor([[0, -1, 0], [0, 0, 0]]), tensor([[0, 0, 0], [0, 0, -2]]))
E1, E2 = tensor([[1, 2, 0], [0, 1, 0]]), tensor([[0, 1, 1], [1, 0, 2]])
P = tensor([1, 0, 1])


def test_the_refinement_is_that_of_the_golden_example() -> None:
    erased = [row("c", (1, 1, 0), (1, 0, 0)), row("d", (0, 1, 1), (0, 0, 1))]
    solved = solve(Rows.of(erased, [row("p", P, P, 0.5)], reg=1.0, dim=3)).matrix()
    torch.testing.assert_close(solved, tensor([[1, 0, 0], [-1 / 7, 3 / 7, -1 / 7], [0, 0, 1]]))


def test_the_fusion_is_that_of_the_golden_example() -> None:
    refined = W @ tensor([[1, 0, 0], [-1 / 7, 3 / 7, -1 / 7], [0, 0, 1]])
    fused = fusion(W, refined, LORAS, [E1.T @ E1, E2.T @ E2], 0.1 * torch.outer(P, P), 0.0)
    expected = tensor([[0.210970, -0.645570, 2.451477], [0.040386, 0.370705, -3.162146]])
    torch.testing.assert_close(fused, expected, rtol=0, atol=2e-6)
    residuals = [float(((fused - refined - lora) @ e.T).norm()) for lora, e in zip(LORAS, (E1, E2), strict=True)]
    assert residuals == pytest.approx([0.374104, 0.278445], abs=2e-6)


def test_one_patch_alone_is_fused_whole_and_nothing_stays_nothing() -> None:
    full = tensor([[1, 2, 0], [0, 1, 1], [1, 0, 3]])
    gram, none = full.T @ full, torch.zeros(3, 3).double()
    torch.testing.assert_close(fusion(W, W, LORAS[:1], [gram], none, 0.0), W + LORAS[0])
    torch.testing.assert_close(fusion(W, W, [0 * LORAS[0]], [gram], 3 * torch.eye(3).double(), 0.5), W)
    torch.testing.assert_close(fusion(W, W + LORAS[1], LORAS[:1], [gram], none, 1e12), W + LORAS[1])


def test_patches_of_orthogonal_contexts_do_not_interfere() -> None:
    contexts = [torch.outer(*[tensor(e)] * 2) for e in ((1, 0, 0), (0, 1, 0))]
    patches = [tensor([[1, 2, 3], [4, 5, 6]]), tensor([[-1, 1, 0], [2, 2, 2]])]
    fused = fusion(W, W, patches, contexts, torch.zeros(3, 3).double(), 1e-9)
    for patch, column in zip(patches, (0, 1), strict=True):
        torch.testing.assert_close(fused[:, column], (W + patch)[:, column])


def test_timesteps_are_drawn_by_the_papers_density() -> None:
    density = focal_density(1000, 200.0, 400.0, 0.05)
    assert float(density.sum()) == pytest.approx(1)
    assert float(density[300]) == pytest.approx(0.00493309, abs=1e-8)
    assert float(density[200]) == pytest.approx(0.00249978, abs=1e-8)
    assert float((density * torch.arange(1000)).sum()) == pytest.approx(300.0014, abs=1e-3)
    assert float(density[200:401].sum()) == pytest.approx(0.864, abs=5e-3)


def test_the_loss_is_the_norm_inside_the_mask_summed_over_layers() -> None:
    first = torch.tensor([0.6, 0.3, 9.0, 9.0]).view(1, 1, 4, 1)
    second = torch.tensor([0.5, 0.5, 9.0, 9.0]).view(1, 1, 4, 1)
    mask = torch.tensor([[True, True], [False, False]])
    assert masked_attention({"a": first}, mask, "norm").item() == pytest.approx(0.45**0.5)
    squared = masked_attention({"a": first, "b": second}, mask, "squared").item()
    assert squared == pytest.approx(0.95)
    joined = torch.tensor([0.6, 0.3, 0.5, 0.5]).view(1, 1, 4, 1)
    assert masked_attention({"a": joined}, torch.ones(2, 2).bool(), "norm").item() == pytest.approx(0.974679, abs=1e-6)


def test_the_words_of_the_name_have_no_rows_and_the_others_are_paired() -> None:
    pair = PromptPair.of("a photo of a {} in a room", "cat", "fire hydrant", "a photo of a fire hydrant in a room")
    rows = {each.site.partition("|")[2]: each for each in coexisting_rows(BACKBONE, [pair])}
    read = BACKBONE.encode([pair.prompt, pair.anchor_prompt])
    states, (end, other_end) = read.states.double(), read.eot.tolist()
    assert other_end > end
    assert set(rows) == {
        *(f"before-{i}" for i in range(5)),
        *(f"behind-{i}" for i in (1, 2, 3)),
        *(f"trailing-{i}" for i in range(tiny.POSITIONS - other_end)),
    }
    for place, position, other in (
        ("behind-1", end - 1, other_end - 1),
        ("behind-3", end - 3, other_end - 3),
        ("trailing-0", end, other_end),
    ):
        torch.testing.assert_close(rows[place].state, states[0, position], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rows[place].anchor, states[1, other], rtol=1e-5, atol=1e-6)


def test_the_refinement_is_one_solve_of_its_rows() -> None:
    eraser, context = MACE(preserve_scale=0.0), FitContext(backbone=BACKBONE)
    moved = eraser.refinement([CAT], context, torch.zeros(32, 32).double()).matrix()
    pairs = [pair for pair in erased_pairs(CAT, in_templates=True)]
    expected = solve(Rows.of(coexisting_rows(BACKBONE, pairs), [], reg=10.0, dim=32)).matrix()
    torch.testing.assert_close(moved, expected)


def test_a_patch_starts_at_the_base_and_less_attention_is_left_afterwards() -> None:
    steps: list[Progress] = []
    eraser = MACE(steps=12, images=1, lr=3e-2, focal=False)
    eraser.fit([CAT], FitContext(backbone=BACKBONE, on_progress=steps.append))
    losses = [step.loss for step in steps if step.stage == "fit"]
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < 0.95 * losses[0]


def test_the_values_of_the_last_layer_learn_nothing_from_the_loss() -> None:
    eraser, context = MACE(steps=2, images=1, lr=1e-2), FitContext(backbone=BACKBONE)
    names = list(BACKBONE.sites(("cross.k", "cross.v")))
    patch = eraser._patch(eraser._images(CAT, context), names, context)
    changes = {name: change for name, change in patch.items() if isinstance(change, LowRankChange)}
    last = max(name for name in names if "to_v" in name)
    assert changes[last].norm == 0
    assert all(changes[name].norm > 0 for name in names if "to_k" in name)


def test_the_refinement_alone_is_less_than_the_whole() -> None:
    context = FitContext(backbone=BACKBONE)
    one = MACE(parts="refinement").fit([CAT], context)
    whole = MACE(**MACE.quick).fit([CAT], context)
    assert one.changes.keys() == whole.changes.keys()
    name, weight = next(iter(tiny.text_weights(BACKBONE).items()))
    assert not torch.equal(one.changes[name].of(weight.detach()), whole.changes[name].of(weight.detach()))
