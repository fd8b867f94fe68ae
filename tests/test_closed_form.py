"""The closed form against references, and the rules by which removals are solved for together."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erasure.closed_form.joint import joined_rows
from erasure.closed_form.problem import Row, Rows
from erasure.closed_form.solve import ridge_edit, solve
from erasure.errors import InputError, SolveError

DIM = 12
SMALL: dict[str, Any] = {"reg": 0.5, "dim": DIM}
few = st.integers(0, 5)
some = settings(deadline=None, max_examples=30)


def states(count: int, seed: int) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(erased: int = 3, kept: int = 4, *, reg: float = 0.5, seed: int = 0, prefix: str = "name") -> Rows:
    targets, anchors, preserve = states(erased, seed), states(erased, seed + 1000), states(kept, seed + 2000)
    weights = 0.5 + states(erased + kept, seed + 3000)[:, 0].square()
    return Rows.of(
        [
            row(f"{prefix} {at}", targets[at], anchors[at], anchor=f"{prefix} anchor {at}", weight=weights[at].item())
            for at in range(erased)
        ],
        [row(f"{prefix} kept {at}", preserve[at], weight=weights[erased + at].item()) for at in range(kept)],
        reg=reg,
        dim=DIM,
    )


def row(
    label: str,
    state: Tensor,
    becomes: Tensor | None = None,
    *,
    anchor: str | None = None,
    site: str = "bare",
    weight: float = 1.0,
    strength: float = 1.0,
) -> Row:
    return Row(
        label=label,
        site=site,
        state=state,
        weight=weight,
        anchor_label=label if anchor is None else anchor,
        anchor=state if becomes is None else becomes,
        strength=strength,
    )


def stacked(rows: Rows) -> tuple[Tensor, Tensor]:
    """The rows and their wanted images, scaled by their weights: C and A of the normal equations."""
    scale = torch.cat([rows.weights, rows.preserve_weights]).sqrt()[:, None]
    return torch.cat([rows.targets, rows.preserve]) * scale, torch.cat([rows.anchors, rows.preserve]) * scale


@some
@given(erased=few, kept=few, seed=st.integers(0, 99), reg=st.sampled_from([0.01, 0.5, 10.0]))
def test_the_map_is_the_least_squares_solution_of_the_stacked_system(
    erased: int, kept: int, seed: int, reg: float
) -> None:
    rows = problem(erased, kept, seed=seed, reg=reg)
    keys, values = stacked(rows)
    identity = torch.eye(DIM, dtype=torch.float64)
    system, wanted = torch.cat([keys, reg**0.5 * identity]), torch.cat([values, reg**0.5 * identity])
    reference = torch.linalg.lstsq(system, wanted).solution.T
    torch.testing.assert_close(solve(rows).matrix(), reference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("erased", [3, 2 * DIM])
def test_one_solve_equals_layer_by_layer(erased: int) -> None:
    rows = problem(erased)
    keys, sources = stacked(rows)
    for out in (5, DIM, 40):
        weight = torch.randn(out, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(out))
        shared = weight + solve(rows).change_of(weight)
        single = ridge_edit(weight, keys, sources @ weight.T, rows.reg)
        torch.testing.assert_close(shared, single, rtol=1e-9, atol=1e-10)


@some
@given(erased=st.integers(1, 4), kept=st.integers(0, 7), seed=st.integers(0, 99))
def test_the_dual_system_has_the_solution_of_the_primal_one(erased: int, kept: int, seed: int) -> None:
    rows = problem(erased, kept, seed=seed)
    assert len(rows.targets) + len(rows.preserve) < DIM
    dual, primal = solve(rows, wide=DIM), solve(rows)
    torch.testing.assert_close(dual.matrix(), primal.matrix(), rtol=1e-9, atol=1e-10)
    assert not torch.equal(dual.matrix(), primal.matrix()) or dual.rank == 0


def test_states_of_two_text_streams_are_no_one_problem() -> None:
    with pytest.raises(InputError, match=r"expected states of one text stream, got \['pooled', 'text'\]"):
        joined_rows([problem(), replace(problem(), space="pooled")])


def test_ridge_edit_has_no_gradient_at_its_solution() -> None:
    keys, values, weight = states(6, 1), states(6, 2)[:, :7], states(7, 3)
    found = ridge_edit(weight, keys, values, 0.3).requires_grad_()
    ((keys @ found.T - values).square().sum() + 0.3 * (found - weight).square().sum()).backward()
    assert found.grad is not None
    assert found.grad.abs().max() < 1e-12


def test_with_little_reg_targets_become_anchors_and_preserved_states_stay() -> None:
    rows = problem(3, 4, reg=1e-9)
    matrix = solve(rows).matrix()
    torch.testing.assert_close(rows.targets @ matrix.T, rows.anchors, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rows.preserve @ matrix.T, rows.preserve, rtol=1e-6, atol=1e-6)


def test_anchors_that_are_their_targets_change_nothing_to_the_last_bit() -> None:
    rows = problem()
    found = solve(replace(rows, anchors=rows.targets))
    weight = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
    assert found.rank == 0
    assert torch.equal((weight.double() + found.change_of(weight)).float(), weight)


def test_factors_are_kept_up_to_half_the_width_and_agree_with_the_full_map() -> None:
    assert solve(problem(DIM // 2)).v is not None
    assert solve(problem(DIM // 2 + 1)).v is None
    # Rows of no weight enlarge neither the rank nor the result.
    rows = problem(2)
    padded = Rows.of(
        [*rows.erased_rows(), *(row(f"idle {at}", states(1, at)[0], states(1, -1)[0], weight=0.0) for at in range(9))],
        rows.kept_rows(),
        reg=rows.reg,
        dim=DIM,
    )
    assert solve(padded).rank == 2
    torch.testing.assert_close(solve(padded).matrix(), solve(rows).matrix())


def test_a_scaled_map_lies_between_the_identity_and_the_map() -> None:
    found = solve(problem())
    identity = torch.eye(DIM, dtype=torch.float64)
    torch.testing.assert_close(found.scaled(0.25).matrix(), identity + 0.25 * (found.matrix() - identity))
    assert torch.equal(found.scaled(0.0).matrix(), identity)


def test_a_system_that_cannot_be_solved_names_reg() -> None:
    with pytest.raises(SolveError, match=r"^reg: expected a value that makes the 12 x 12 system solvable, got 0.0\."):
        solve(problem(reg=0.0))
    assert solve(problem(3, 20, reg=0.0)).rank == 3
    for setting, weights in (("erase_scale", "weights"), ("preserve_scale", "preserve_weights")):
        rows = problem(reg=0.5)
        heavy = replace(rows, **{weights: torch.full_like(getattr(rows, weights), 1e40)})
        with pytest.raises(SolveError, match=rf"^{setting}: expected weights .*, got 1e\+40\. Lower it"):
            solve(heavy)
    with pytest.raises(InputError, match="reg: expected a finite number >= 0"):
        solve(problem(reg=-1.0))


def test_states_that_are_not_finite_are_refused() -> None:
    rows = problem()
    with pytest.raises(InputError, match="targets: expected finite text states"):
        solve(replace(rows, targets=rows.targets * float("nan")))
    with pytest.raises(InputError, match="weights: expected finite numbers >= 0"):
        solve(replace(rows, weights=-rows.weights))


@some
@given(order=st.permutations(range(4)), seed=st.integers(0, 9))
def test_the_order_of_removals_does_not_matter_to_the_last_bit(order: list[int], seed: int) -> None:
    parts = [problem(2, 3, seed=seed + at, prefix=f"p{at}", reg=0.1 * (at + 1)) for at in range(4)]
    one, other = solve(joined_rows(parts)), solve(joined_rows([parts[at] for at in order]))
    assert torch.equal(one.matrix(), other.matrix())


def test_joining_in_steps_equals_joining_at_once() -> None:
    parts = [problem(2, 3, seed=at, prefix=f"p{at}") for at in range(3)]
    stepwise = joined_rows([joined_rows(parts[:2]), parts[2]])
    assert torch.equal(solve(stepwise).matrix(), solve(joined_rows(parts)).matrix())


def test_what_is_erased_anywhere_is_preserved_nowhere() -> None:
    cat, dog, bird = states(3, 0)
    one = Rows.of([row("cat", cat, bird, anchor="")], [row("dog", dog), row("bird", bird)], reg=0.5, dim=DIM)
    other = Rows.of([row("dog", dog, bird, anchor="")], [row("cat", cat)], reg=0.1, dim=DIM)
    joined = joined_rows([one, other])
    assert joined.labels == ("cat", "dog")
    assert joined.preserve_labels == ("bird",)
    assert joined.reg == 0.5


def test_rows_whose_template_speaks_of_an_erased_name_go() -> None:
    cat, neon, drawn, mosaic, catalogue = states(5, 0)
    speaking = "a cat in the style of {}|subject"
    one = Rows.of(
        [row("cat", cat, drawn, anchor="", site="{}|subject")], [row("", cat, site="a cat|trailing-0")], **SMALL
    )
    other = Rows.of(
        [row("neon", neon, drawn, anchor="", site=site) for site in ("{}|subject", speaking)],
        [row("mosaic", mosaic, site=speaking), row("", catalogue, site="a catalogue|subject")],
        **SMALL,
    )
    joined = joined_rows([one, other])
    assert (joined.labels, joined.sites) == (("cat", "neon"), ("{}|subject", "{}|subject"))
    assert joined.preserve_sites == ("a catalogue|subject",)


def test_equal_rows_count_once_at_their_largest_weight() -> None:
    cat, dog, bird = states(3, 0)
    parts = [
        Rows.of([row("cat", cat, dog, anchor="dog", weight=w)], [row("bird", bird, weight=w)], reg=0.5, dim=DIM)
        for w in (1.0, 3.0, 2.0)
    ]
    joined = joined_rows(parts)
    assert joined.weights.tolist() == [3.0]
    assert joined.preserve_weights.tolist() == [3.0]
    assert joined_rows(parts[::-1]).labels == joined.labels


def test_rows_are_moved_beyond_their_anchors_by_their_strength() -> None:
    cat, dog, bird = states(3, 0)
    parts = [
        Rows.of([row("cat", cat, dog, anchor="dog", strength=s)], [row("bird", bird)], **SMALL) for s in (1.0, 1.5, 1.2)
    ]
    sent = [solve(part).minus_identity() for part in parts]
    torch.testing.assert_close(sent[1], 1.5 * sent[0])
    assert torch.equal(parts[0].goals()[0], dog)
    assert torch.equal(solve(replace(parts[0], strengths=None)).minus_identity(), sent[0])
    for order in (parts, parts[::-1]):
        assert torch.equal(solve(joined_rows(order)).minus_identity(), sent[1])


def test_an_anchor_that_is_erased_resolves_along_the_chain() -> None:
    cat, dog, animal, nothing = states(4, 0)
    parts = [
        Rows.of([row("cat", cat, dog, anchor="dog")], [], reg=0.5, dim=DIM),
        Rows.of([row("dog", dog, animal, anchor="animal")], [], reg=0.5, dim=DIM),
        Rows.of([row("animal", animal, nothing, anchor="")], [], reg=0.5, dim=DIM),
    ]
    joined = joined_rows(parts)
    assert joined.anchor_labels == ("", "", "")
    assert torch.equal(joined.anchors, nothing.expand(3, DIM))


def test_an_anchor_erased_at_other_sites_resolves_by_the_map_of_its_removal() -> None:
    cat, dog, nothing = states(3, 0)
    parts = [
        Rows.of([row("cat", cat, dog, anchor="dog", site="a {}|subject")], [], reg=0.5, dim=DIM),
        Rows.of([row("dog", dog, nothing, anchor="")], [], reg=0.5, dim=DIM),
    ]
    joined = joined_rows(parts)
    assert joined.anchor_labels == ("", "")
    torch.testing.assert_close(joined.anchors[0], nothing, rtol=0.01, atol=0.01)


def test_a_circle_of_anchors_is_an_error_that_shows_it() -> None:
    cat, dog = states(2, 0)
    parts = [
        Rows.of([row("cat", cat, dog, anchor="dog")], [], reg=0.5, dim=DIM),
        Rows.of([row("dog", dog, cat, anchor="cat")], [], reg=0.5, dim=DIM),
    ]
    with pytest.raises(InputError, match="got the circle cat -> dog -> cat"):
        joined_rows(parts)


def test_nothing_or_states_of_two_models_cannot_be_joined() -> None:
    with pytest.raises(InputError, match="expected at least one removal"):
        joined_rows([])
    narrow = Rows.of([row("cat", torch.zeros(3), torch.ones(3), anchor="")], [], reg=0.5, dim=3)
    with pytest.raises(InputError, match=r"states of one width, got \[3, 12\]"):
        joined_rows([problem(), narrow])


def test_a_label_that_is_not_normalised_is_refused() -> None:
    with pytest.raises(InputError, match="expected a normalised label, got 'Cat'"):
        row("Cat", torch.zeros(DIM))


def test_other_rows_leave_the_rest_of_a_problem_as_it_is() -> None:
    def row(name: str, size: float) -> Row:
        state = torch.full((3,), size, dtype=torch.float64)
        return Row(label=name, site="{}|0", state=state, weight=size, anchor_label="sky", anchor=-state, strength=0.5)

    problem = Rows.of(
        [row("cat", 1.0)], [row("dog", 2.0)], reg=0.3, dim=3, space="pooled", reg_each=0.1, threshold=0.2, held_rank=4
    )
    for changed in (problem.with_rows(erased=[row("boat", 5.0)]), problem.with_rows(kept=[row("boat", 5.0)])):
        assert [changed.reg, changed.space, changed.reg_each, changed.threshold, changed.held_rank] == [
            *(0.3, "pooled", 0.1, 0.2, 4)
        ]
    erased, kept = problem.with_rows(erased=[row("boat", 5.0)]), problem.with_rows(kept=[])
    assert [erased.labels, erased.preserve_labels, kept.labels, kept.preserve_labels] == [
        *(("boat",), ("dog",), ("cat",), ())
    ]
    assert torch.equal(erased.goals(), row("boat", 5.0).goal[None])
    assert erased.preserve is problem.preserve
    assert kept.targets is problem.targets
    assert kept.preserve.shape == (0, 3)
