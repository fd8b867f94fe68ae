"""RECE: derived rows, joint and chained rounds, the golden example."""

from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.closed_form.problem import Row, Rows
from erasure.closed_form.projections import projection_gram
from erasure.closed_form.solve import solve
from erasure.concept import Concept
from erasure.erasers.cfe import CFE
from erasure.erasers.esd import ESD
from erasure.erasers.rece import RECE, derived_rows
from erasure.erasers.speed import SPEED
from erasure.erasers.uce import UCE
from erasure.errors import InputError
from erasure.ledger import Ledger
from erasure.training.context import FitContext
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1(vocabulary="clip"))
CONTEXT = FitContext(backbone=BACKBONE)
CAT = Concept(target="cat", anchor="boat", preserve=("dog", "bird"))
FIRST = UCE(rows="last-subject", strength=1.0, preserve_scale=1.0)
W1, W2 = (torch.tensor(matrix, dtype=torch.float64) for matrix in ([[1, 0, 2], [0, 1, -1]], [[1, 1, 0], [0, 2, 1]]))
GRAM = W1.T @ W1 + W2.T @ W2


def tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def row(label: str, state: Any, becomes: Any = None, *, weight: float = 1.0) -> Row:
    state = tensor(state)
    anchor = state if becomes is None else tensor(becomes)
    return Row(label=label, site=f"{label}|", state=state, weight=weight, anchor_label="a", anchor=anchor)


TARGET = row("c", (1, 2, 0), (0, 1, 1))


def near(value: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(value, tensor(expected), rtol=0, atol=2e-6)


def golden(*erased: Row) -> torch.Tensor:
    return solve(Rows.of([TARGET, *erased], [row("p", (1, 0, 1))], reg=0.5, dim=3)).matrix()


def derive(moved: torch.Tensor, penalty: float = 0.1) -> Row:
    return derived_rows([TARGET], moved, GRAM, penalty, 0)[0]


def distance(moved: torch.Tensor, state: torch.Tensor) -> float:
    change = moved @ state - tensor([0, 1, 1])
    return float((change @ GRAM @ change).sqrt())


def test_the_derived_states_are_those_of_the_golden_example() -> None:
    first = golden()
    near(first[0], [0.882353, -0.392157, 0.078431])
    near(derive(first).state, [2.535074, 3.733073, -1.694566])
    near(derive(first, 1e-12).state, [3.190476, 4.190476, -2.190476])
    near(first @ derive(first, 1e-12).state, [1, 2, 0])


def test_a_chained_round_is_that_of_the_golden_example() -> None:
    first = golden()
    derived = derive(first)
    second = solve(Rows.of([derived], [row("p", (1, 0, 1), weight=0.1)], reg=0.1, dim=3)).matrix()
    near((first @ second)[0], [0.789252, -0.546289, 0.159965])
    near(derive(first @ second).state, [0.628181, 2.805090, -0.598866])
    distances = [distance(moved, TARGET.state) for moved in (torch.eye(3).double(), first, first @ second)]
    near(tensor(distances), [3.162278, 0.310027, 1.184503])


def test_a_joint_round_is_that_of_the_golden_example() -> None:
    derived = derive(golden())
    joint = golden(derived)
    near(joint[2], [0.282952, 0.383263, 0.723427])
    near(tensor([distance(joint, TARGET.state), distance(joint, derived.state)]), [0.165542, 0.249254])
    near(derive(joint).state, [0.848090, 3.383697, -0.735586])


def test_a_derived_state_is_a_stationary_point_layer_by_layer() -> None:
    moved, penalty = golden(), 0.1
    state = derive(moved, penalty).state.requires_grad_()
    loss = penalty * state.square().sum() + sum((w @ (moved @ state - TARGET.state)).square().sum() for w in (W1, W2))
    (gradient,) = torch.autograd.grad(loss, state)
    assert gradient.abs().max() < 1e-9


def test_a_larger_penalty_gives_a_shorter_state() -> None:
    lengths = [float(derive(golden(), penalty).state.norm()) for penalty in (1e-3, 0.1, 1.0, 10.0)]
    assert lengths == sorted(lengths, reverse=True)


def test_no_rounds_are_the_base_bit_for_bit() -> None:
    plain, none = FIRST.fit([CAT], CONTEXT), RECE(base=FIRST, rounds=0).fit([CAT], CONTEXT)
    for name, weight in tiny.text_weights(BACKBONE).items():
        assert torch.equal(plain.edited(name, weight.detach()), none.edited(name, weight.detach()))


@pytest.mark.parametrize("base", [FIRST, SPEED(), CFE(rows="last-subject")], ids=lambda base: base.name)
def test_a_joint_round_leaves_less_to_regenerate(base: Any) -> None:
    eraser = RECE(base=base, penalty=1e-3)
    gram = projection_gram(BACKBONE, eraser.projections(BACKBONE, "text"))
    before, after = (solve(one.problems_of([CAT], CONTEXT)[0]).matrix() for one in (base, eraser))
    sources = base.problems_of([CAT], CONTEXT)[0].erased_rows()

    def error(moved: torch.Tensor) -> float:
        states = torch.stack([each.state for each in derived_rows(sources, moved, gram, 1e-3, 0)])
        missed = moved @ states.T - torch.stack([source.state for source in sources]).double().T
        return float((missed * (gram @ missed)).sum())

    assert error(after) > error(before)


def test_an_anchor_that_is_the_target_moves_nothing_and_shrinks_the_state() -> None:
    same = row("c", (1, 2, 0))
    moved = solve(Rows.of([same], [], reg=0.5, dim=3)).matrix()
    near(moved, torch.eye(3))
    expected = torch.linalg.solve(0.1 * torch.eye(3).double() + GRAM, GRAM @ same.state)
    near(derived_rows([same], moved, GRAM, 0.1, 0)[0].state, expected)


def test_removals_in_any_order_are_one_problem() -> None:
    concepts = [CAT, Concept(target="dog", anchor="tree")]
    one, other = (RECE(base=FIRST).fit(order, CONTEXT) for order in (concepts, concepts[::-1]))
    name, weight = next(iter(tiny.text_weights(BACKBONE).items()))
    assert torch.equal(one.changes[name].of(weight.detach()), other.changes[name].of(weight.detach()))


def test_the_published_form_is_trained_on_what_stands_and_covers_every_position() -> None:
    published = RECE(base=FIRST, rows="chained", states="all", rounds=2)
    assert (published.dependence, RECE().dependence) == ("weights", "base")
    edit = published.fit([CAT], CONTEXT)
    assert edit.rows is None
    sources = published.sources(FIRST.problems_of([CAT], CONTEXT)[0], [CAT], CONTEXT)
    assert len(sources) == tiny.POSITIONS


@pytest.mark.parametrize("base", [ESD(), SPEED(form="layers")], ids=["esd", "speed"])
def test_a_base_that_is_no_single_map_is_refused(base: Any) -> None:
    with pytest.raises(InputError, match=rf"rece.base: expected an eraser that is one map .*, got '{base.name}'"):
        RECE(base=base)


def test_in_a_ledger_it_is_solved_with_the_others_and_undone_exactly(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    eraser = RECE(base=FIRST)
    both, alone = (Ledger.open_or_create(tmp_path / name, pipe, "tiny") for name in ("both", "alone"))
    both.remove(pipe, SPEED(), [Concept(target="tree", preserve=("house",))])
    entry = both.remove(pipe, eraser, [CAT])
    alone.remove(pipe, eraser, [CAT])
    assert (entry.solved, entry.started_from) == (True, ())
    both.undo("001")
    assert both.verify(pipe) == []
    for name, weight in tiny.text_weights(backbone_of(pipe)).items():
        one, other = (ledger.edit().edited(name, weight.detach()) for ledger in (both, alone))  # type: ignore[attr-defined]
        assert torch.equal(one, other)
