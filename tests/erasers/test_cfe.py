"""CFE: exact constraints, proxies, the golden example."""

from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.closed_form.joint import joined_rows
from erasure.closed_form.problem import Row, Rows
from erasure.closed_form.solve import free_directions, solve
from erasure.concept import Concept
from erasure.erasers.cfe import CFE, _projected
from erasure.errors import InputError
from erasure.training.context import FitContext
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1(vocabulary="clip"))
CONTEXT = FitContext(backbone=BACKBONE)
CAT = Concept(target="cat", anchor="boat", preserve=("dog", "bird", "tree"))


def tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def row(label: str, state: Any, becomes: Any = None, *, weight: float = 1.0) -> Row:
    state = tensor(state)
    return Row(
        label=label,
        site=f"{label}|",
        state=state,
        weight=weight,
        anchor_label="proxy",
        anchor=state if becomes is None else tensor(becomes),
    )


def problem(erased: Any, kept: Any, *, ridge: float = 0.0, rank: int | None = None, dim: int = 3) -> Rows:
    return Rows.of(
        [row(f"c{i}", state, becomes) for i, (state, becomes) in enumerate(erased)],
        [row(f"p{i}", state, weight=float("inf")) for i, state in enumerate(kept)],
        reg=ridge,
        dim=dim,
        held_rank=rank,
    )


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_map_is_that_of_the_golden_example() -> None:
    c, safe = tensor([1, 2, 1]), tensor([[0, 1, 0], [0, 1, 1]])
    proxy = _projected(c, safe)
    torch.testing.assert_close(proxy, tensor([0, 2, 1]))
    solved = solve(problem([(c, proxy)], [(1, 0, 1)])).matrix()
    torch.testing.assert_close(solved, tensor([[1, -0.5, 0], [0, 1, 0], [0, 0, 1]]))
    one = _projected(c, safe[1:])
    torch.testing.assert_close(one, tensor([0, 1.5, 1.5]))
    oblique = solve(problem([(c, one)], [(1, 0, 1), (0, 1, 1)])).matrix()
    torch.testing.assert_close(oblique, tensor([[0.5, -0.5, 0.5], [-0.25, 0.75, 0.25], [0.25, 0.25, 0.75]]))
    torch.testing.assert_close(oblique @ oblique, oblique)
    assert torch.linalg.matrix_rank(oblique) == 2


def test_targets_become_their_proxies_and_what_is_kept_stays() -> None:
    targets, proxies, kept = random(0, 3, 12), random(1, 3, 12), random(2, 4, 12)
    pairs = list(zip(targets, proxies, strict=True))
    solved = solve(problem(pairs, kept, dim=12))
    torch.testing.assert_close(targets @ solved.matrix().T, proxies)
    torch.testing.assert_close(kept @ solved.matrix().T, kept)
    assert torch.linalg.matrix_rank(solved.minus_identity()) == 3
    torch.testing.assert_close(solve(problem(pairs[::-1], kept, dim=12)).matrix(), solved.matrix())


def test_a_ridge_is_the_regularised_inverse() -> None:
    targets, proxies, kept = random(0, 3, 12), random(1, 3, 12), random(2, 4, 12)
    rows = problem(list(zip(targets, proxies, strict=True)), kept, ridge=0.7, dim=12)
    free = free_directions(rows)
    x = free.T @ targets.T
    inverse = torch.linalg.inv(x.T @ x + 0.7 * torch.eye(3, dtype=torch.float64)) @ x.T
    expected = torch.eye(12, dtype=torch.float64) + (proxies - targets).T @ inverse @ free.T
    torch.testing.assert_close(solve(rows).matrix(), expected)


def test_a_truncated_span_moves_what_is_kept_within_the_bound_of_theorem_4_2() -> None:
    targets, proxies, kept = random(0, 2, 12), random(1, 2, 12), random(2, 8, 12)
    rows = problem(list(zip(targets, proxies, strict=True)), kept, rank=5, dim=12)
    change = solve(rows).minus_identity()
    bound = torch.linalg.matrix_norm(change, 2) * torch.linalg.svdvals(kept)[5]
    moved = torch.linalg.vector_norm(kept @ change.T, dim=1)
    assert moved.max() <= bound * (1 + 1e-9)
    assert moved.max() > 1e-6
    whole = problem(list(zip(targets, proxies, strict=True)), kept, rank=8, dim=12)
    without = problem(list(zip(targets, proxies, strict=True)), kept, dim=12)
    torch.testing.assert_close(solve(whole).matrix(), solve(without).matrix())


def test_kept_proxies_make_the_map_an_oblique_projector() -> None:
    rows = CFE(rows="last-subject").problems_of([CAT], CONTEXT)[0]
    moved = solve(rows).matrix()
    torch.testing.assert_close(moved @ moved, moved, rtol=0, atol=1e-8)
    torch.testing.assert_close(moved @ (rows.targets - rows.goals()).T, torch.zeros(len(moved), 1).double())


def test_the_rows_are_the_proxies_of_the_nearest_names() -> None:
    rows = CFE(rows="last-subject", neighbours=2, keep_proxies=False).problems_of([CAT], CONTEXT)[0]
    assert len(rows.anchor_labels[0].split(", ")) == 3
    assert rows.anchor_labels[0].startswith("boat")
    assert "boat" not in rows.preserve_labels
    plain = CFE(rows="last-subject", proxy=False).problems_of([CAT], CONTEXT)[0]
    torch.testing.assert_close(plain.anchors[0], BACKBONE.encode(["boat"]).states[0, 1].double())


def test_an_erased_name_leaves_what_another_removal_holds() -> None:
    parts = [
        CFE(rows="last-subject").problems_of([concept], CONTEXT)[0]
        for concept in (CAT, Concept(target="dog", preserve=("bird",)))
    ]
    for order in (parts, parts[::-1]):
        assert "dog" not in joined_rows(order).preserve_labels
    one, other = (solve(joined_rows(order)).matrix() for order in (parts, parts[::-1]))
    assert torch.equal(one, other)


def test_a_target_in_the_span_of_what_is_kept_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"cfe: expected a target that is not made of what is kept, got 'cat'"):
        CFE(rows="last-subject", least_share=1.0).problems_of([CAT], CONTEXT)[0]
