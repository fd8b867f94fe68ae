"""SPEED: the constrained solve, its golden example, filters and copies."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.closed_form.joint import joined_rows
from erasure.closed_form.problem import Row, Rows
from erasure.closed_form.solve import free_directions, solve
from erasure.concept import Concept
from erasure.edits import WeightEdit
from erasure.erasers.cfe import CFE
from erasure.erasers.speed import SPEED, _filtered, _shifts
from erasure.erasers.uce import UCE
from erasure.errors import InputError
from erasure.training.context import FitContext
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1(vocabulary="clip"))
CONTEXT = FitContext(backbone=BACKBONE)
CAT = Concept(target="cat", anchor="boat", preserve=("dog", "bird"))
W = torch.tensor([[1.0, 0, 2], [0, 1, -1]], dtype=torch.float64)


def row(label: str, state: Any, becomes: Any = None, *, weight: float = 1.0) -> Row:
    state = torch.as_tensor(state, dtype=torch.float64)
    anchor = state if becomes is None else torch.as_tensor(becomes, dtype=torch.float64)
    return Row(label=label, site=f"{label}|", state=state, weight=weight, anchor_label="", anchor=anchor)


def problem(kept: Any = (), invariants: Any = (), *, threshold: float = 0.1, ridge: float = 1.0) -> Rows:
    held = [row(f"kept {i}", state, weight=float("inf")) for i, state in enumerate(kept)]
    held += [row("", state, weight=float("inf")) for state in invariants]
    return Rows.of([row("c", (1, 2, 1), (0, 1, 1))], held, reg=0.0, dim=3, reg_each=ridge, threshold=threshold)


def near(matrix: Tensor, expected: Any, *, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(matrix, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


def test_the_solution_is_that_of_the_golden_example() -> None:
    near(solve(problem([(0, 0, 2)], [(1, 0, 0)])).matrix(), [[1, -0.4, 0], [0, 0.6, 0], [0, 0, 1]])
    near(solve(problem([(0, 0, 2)])).matrix(), [[0.833333, -1 / 3, 0], [-1 / 6, 2 / 3, 0], [0, 0, 1]])
    unheld = solve(problem()).matrix()
    near(unheld, [[0.857143, -0.285714, -0.142857], [-0.142857, 0.714286, -0.142857], [0, 0, 1]])
    alone = Rows.of([row("c", (1, 2, 1), (0, 1, 1))], [], reg=1.0, dim=3)
    torch.testing.assert_close(unheld, solve(alone).matrix())


def test_filter_and_copies_are_those_of_the_golden_example() -> None:
    states = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 2]], dtype=torch.float64)
    rows = problem(states)
    near(_shifts(rows, W, states), [0.202031, 0.404061, 0.808122, 0.404061])
    assert _filtered(rows, W).preserve_labels == ("kept 2",)
    direction = torch.linalg.svd(W, full_matrices=False).Vh[-1]
    near(direction.abs(), [0.447214, 0.894427, 0])


def test_what_is_held_does_not_move_and_the_rank_is_that_of_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    kept, invariants = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (3, 2))
    erased = [
        row(f"c{i}", torch.randn(12, generator=generator), torch.randn(12, generator=generator)) for i in range(3)
    ]
    held = [row(f"kept {i}", state, weight=float("inf")) for i, state in enumerate(kept)]
    held += [row("", state, weight=float("inf")) for state in invariants]
    rows = Rows.of(erased, held, reg=0.0, dim=12, reg_each=0.3)
    solved = solve(rows)
    moved = torch.cat([kept, invariants]) @ solved.matrix().T
    torch.testing.assert_close(moved, torch.cat([kept, invariants]), rtol=0, atol=1e-10)
    assert torch.linalg.matrix_rank(solved.minus_identity()) <= 3
    # The gradient of the objective is zero in every direction that is free.
    change, basis = solved.minus_identity(), free_directions(rows)
    residual = rows.targets @ solved.matrix().T - rows.goals()
    gradient = residual.T @ rows.targets + rows.pull * change
    torch.testing.assert_close(gradient @ basis, torch.zeros(12, 7, dtype=torch.float64), rtol=0, atol=1e-10)


def test_nothing_moves_if_the_target_is_held_or_is_its_own_anchor() -> None:
    held = problem([(1, 2, 1)], threshold=0.0)
    near(solve(held).matrix(), torch.eye(3), tolerance=1e-12)
    same = Rows.of([row("c", (1, 2, 1))], [row("", (1, 0, 0), weight=float("inf"))], reg=0.0, dim=3, reg_each=1.0)
    near(solve(same).matrix(), torch.eye(3), tolerance=1e-12)


def test_a_threshold_above_every_eigenvalue_holds_no_name() -> None:
    torch.testing.assert_close(
        solve(problem([(0, 0, 2), (1, 0, 1)], threshold=100.0)).matrix(), solve(problem()).matrix()
    )


def test_a_slack_constraint_is_the_closed_form_of_the_paper() -> None:
    """W' = W + W (A - T) P [I - M K (K^T P M K + lambda I)^-1 K^T P] M."""
    c, a, k, r = (torch.tensor(v, dtype=torch.float64)[:, None] for v in ((1, 2, 1), (0, 1, 1), (1, 1, 0), (0, 0, 2)))
    eye, slack = torch.eye(3, dtype=torch.float64), 0.5
    p = torch.diag(torch.tensor([1.0, 1, 0], dtype=torch.float64))
    m = torch.linalg.inv(c @ c.T @ p + eye)
    inner = torch.linalg.inv(k.T @ p @ m @ k + slack)
    expected = eye + (a @ c.T - c @ c.T) @ p @ (eye - m @ k @ inner @ k.T @ p) @ m
    held = [row("kept", r[:, 0], weight=float("inf")), row("", k[:, 0], weight=1 / slack)]
    rows = Rows.of([row("c", c[:, 0], a[:, 0])], held, reg=0.0, dim=3, reg_each=1.0, threshold=0.1)
    torch.testing.assert_close(solve(rows).matrix(), expected)


def test_removals_are_joined_as_if_they_had_been_removed_at_once() -> None:
    concepts = [CAT, Concept(target="dog", preserve=("bird", "tree"))]
    together = solve(joined_rows([SPEED().problems_of(concepts, CONTEXT)[0]])).matrix()
    apart = [SPEED().problems_of([concept], CONTEXT)[0] for concept in concepts]
    for parts in (apart, apart[::-1]):
        joined = joined_rows(parts)
        assert "dog" not in joined.preserve_labels
        torch.testing.assert_close(solve(joined).matrix(), together, rtol=0, atol=1e-8)


def test_one_map_for_all_layers_is_that_of_each_layer_without_filter_and_copies() -> None:
    shared = SPEED().fit([CAT], CONTEXT)
    layers = SPEED(form="layers", filtered=False, augment=0).fit([CAT], CONTEXT)
    assert shared.changes.keys() == layers.changes.keys()
    assert all("to_v" in name for name in shared.changes)
    weights = BACKBONE.parameters(shared.changes.__contains__)
    for name, change in shared.changes.items():
        weight = weights[name].detach()
        torch.testing.assert_close(layers.changes[name].of(weight), change.of(weight), rtol=1e-4, atol=1e-6)


def test_copies_are_moved_along_the_direction_of_the_smallest_output_by_the_seed() -> None:
    rows = problem([(0, 0, 2), (1, 1, 1)])
    eraser = SPEED(form="layers", filtered=False, augment=10)
    one, same, other = (eraser._refined(rows, W, torch.Generator().manual_seed(seed)).preserve for seed in (0, 0, 1))
    assert len(one) == 2 + 2 * 10
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    moves = one[2:] - rows.preserve.repeat_interleave(10, dim=0)
    direction = torch.linalg.svd(W, full_matrices=False).Vh[-1]
    torch.testing.assert_close(moves, (moves @ direction)[:, None] * direction)
    filtered = SPEED(form="layers")._refined(rows, W, torch.Generator().manual_seed(0))
    assert len(filtered.preserve) < 1 + 10


def test_what_the_edit_depends_on_follows_its_form() -> None:
    published = SPEED(form="layers", rows="last-subject", empty_anchor="start")
    assert (published.filtered, published.augment, published.dependence) == (True, 10, "weights")
    assert (SPEED().dependence, SPEED(filtered=True).dependence) == ("text", "base")
    assert published.fit([CAT], CONTEXT).rows is None


def test_copies_need_layers() -> None:
    with pytest.raises(InputError, match=r"speed.augment: expected 0 with the form 'shared', got 3"):
        SPEED(augment=3)


def test_an_edit_with_held_states_survives_the_disk(tmp_path: Any) -> None:
    edit = SPEED().fit([CAT], CONTEXT)
    loaded = WeightEdit.load(edit.save(tmp_path / "edit.safetensors"))
    assert loaded.rows is not None
    assert edit.rows is not None
    one, other = loaded.rows["text"], edit.rows["text"]
    assert (one.reg_each, one.threshold) == (1.0, 0.1)
    assert torch.equal(one.preserve_weights, other.preserve_weights)


def test_removals_by_several_methods_are_one_problem_in_any_order() -> None:
    parts = [
        UCE().problems_of([Concept(target="tree", preserve=("bird",))], CONTEXT)[0],
        SPEED().problems_of([CAT], CONTEXT)[0],
        CFE(rows="last-subject").problems_of([Concept(target="house", preserve=("bird",))], CONTEXT)[0],
    ]
    one, other = joined_rows(parts), joined_rows(parts[::-1])
    assert (one.reg, one.reg_each, one.threshold, one.held_rank) == (0.5, 1.0, 0.0, None)
    assert torch.equal(solve(one).matrix(), solve(other).matrix())
    held = one.preserve[one.held]
    torch.testing.assert_close(held @ solve(one).matrix().T, held, rtol=0, atol=1e-6)


def test_settings_follow_the_size_of_other_encoders_states() -> None:
    context = FitContext(backbone=backbone_of(tiny.flux()))
    for rows in SPEED(threshold=0.3, ridge=2.0).problems_of([CAT], context):
        assert rows.threshold / rows.reg_each == pytest.approx(0.15)
        assert rows.reg_each != 2.0
