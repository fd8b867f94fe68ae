"""OCE: the rotation in the plane, the golden example, what an orthogonal factor keeps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.closed_form.caption_statistics import ordinary_captions, ordinary_moment, word_moment
from erasure.closed_form.problem import Row, Rows
from erasure.closed_form.rotation import rotation, span
from erasure.concept import Concept
from erasure.erasers.oce import OCE
from erasure.training.context import FitContext
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1(vocabulary="clip"))
CONTEXT = FitContext(backbone=BACKBONE)
CAT = Concept(target="cat", anchor="boat", preserve=("dog", "bird"))


def tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


W = tensor([[1, 0, 2], [0, 1, -1], [1, 1, 0]])
C, A, P = tensor([1, 2, 0]), tensor([0, 1, 1]), tensor([1, 0, 1])
MOMENT = torch.diag(tensor([2, 1, 3])) + 0.5 * torch.outer(P, P) + torch.eye(3).double()


def golden(**settings: Any) -> torch.Tensor:
    row = Row(label="c", site="c|", state=C, weight=1.0, anchor_label="a", anchor=A)
    return OCE(alpha=40.0, **settings).turned(W, Rows.of([row], [], reg=1.0, dim=3), MOMENT)


def cos(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_the_released_form_is_that_of_the_golden_example() -> None:
    turned = golden(form="released")
    expected = [[0.957905, -0.072018, 2.028604], [-1.004264, -0.738646, -0.298002], [-0.271791, -1.203834, 0.892167]]
    torch.testing.assert_close(turned, tensor(expected), rtol=0, atol=2e-6)
    assert cos(W @ C, W @ A) == pytest.approx(0.597614, abs=1e-6)
    assert cos(turned @ C, W @ A) == pytest.approx(-0.125705, abs=2e-6)
    assert cos(turned @ C, W @ C) == pytest.approx(-0.870544, abs=2e-6)
    moved = [
        float((each @ P - W @ P).norm() / (W @ P).norm()) for each in (turned, golden(form="released", repair=True))
    ]
    assert moved == pytest.approx([0.146368, 0.496005], abs=2e-6)
    assert cos(golden() @ C, W @ A) == pytest.approx(-0.125704, abs=2e-6)


@pytest.mark.parametrize(("alpha", "objective", "released"), [(0.5, 52.4109, 67.5891), (1.0, 40.8934, 79.1066)])
def test_in_the_plane_the_objective_turns_towards_the_anchor_and_the_released_form_away(
    alpha: float, objective: float, released: float
) -> None:
    angle = math.radians(60)
    anchor, target = tensor([[1], [0]]), tensor([[math.cos(angle)], [math.sin(angle)]])
    for form, expected in (("objective", objective), ("released", released)):
        turned = rotation(target, anchor, torch.eye(2).double(), alpha, form) @ target[:, 0]  # type: ignore[arg-type]
        assert math.degrees(math.atan2(turned[1], turned[0])) == pytest.approx(expected, abs=1e-4)


def test_the_turn_in_the_plane_has_a_closed_form() -> None:
    theta, stay, alpha = 1.1, 2.0, 0.7
    anchor, target = tensor([[1], [0]]), tensor([[math.cos(theta)], [math.sin(theta)]])
    turned = rotation(target, anchor, stay * torch.eye(2).double(), alpha, "objective") @ target[:, 0]
    phi = math.atan2(-alpha * math.sin(theta) * math.cos(theta), 2 * stay - alpha * math.sin(theta) ** 2)
    assert math.atan2(turned[1], turned[0]) - theta == pytest.approx(phi)


def random_problem(seed: int, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (2, 2, 9)]
    return span(outputs[0]), span(outputs[1]), outputs[2].T @ outputs[2]


def test_the_released_form_is_the_inverse_and_both_are_orthogonal() -> None:
    target, anchor, stay = random_problem(0)
    one, other = (rotation(target, anchor, stay, 3.0, form) for form in ("objective", "released"))
    torch.testing.assert_close(one.T, other)
    torch.testing.assert_close(one.T @ one, torch.eye(6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation(target, anchor, 7 * stay, 21.0, "objective"), one)


def test_no_random_orthogonal_matrix_is_better_on_the_objective() -> None:
    target, anchor, stay = random_problem(1, dim=3)
    goal = stay - 3.0 * (torch.eye(3).double() - anchor @ anchor.T) @ target @ target.T
    best = (rotation(target, anchor, stay, 3.0, "objective") * goal).sum()
    drawn = torch.randn(20_000, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (torch.linalg.qr(drawn).Q * goal).sum(dim=(1, 2))
    assert values.max() < best
    near = torch.linalg.matrix_exp(0.01 * (drawn[:100] - drawn[:100].mT)) @ rotation(
        target, anchor, stay, 3.0, "objective"
    )
    assert (near * goal).sum(dim=(1, 2)).max() < best


def test_nothing_turns_without_strength_or_if_the_target_is_in_the_anchors_span() -> None:
    target, anchor, stay = random_problem(2)
    torch.testing.assert_close(rotation(target, anchor, stay, 0.0, "objective"), torch.eye(6).double())
    torch.testing.assert_close(rotation(target, target, stay, 9.0, "objective"), torch.eye(6).double())


def test_lengths_and_angles_of_all_outputs_stay() -> None:
    edit = OCE().fit([CAT], CONTEXT)
    assert all("to_v" in name for name in edit.changes)
    for name, parameter in BACKBONE.parameters(edit.changes.__contains__).items():
        weight = parameter.detach().double()
        turned = weight + edit.changes[name].of(weight)
        torch.testing.assert_close(turned.T @ turned, weight.T @ weight, rtol=0, atol=1e-5)
        assert (turned - weight).norm() > 0.01 * weight.norm()


def test_the_order_of_targets_does_not_matter() -> None:
    concepts = [CAT, Concept(target="tree", anchor="boat")]
    one, other = (OCE().fit(order, CONTEXT) for order in (concepts, concepts[::-1]))
    for name, parameter in BACKBONE.parameters(one.changes.__contains__).items():
        weight = parameter.detach()
        torch.testing.assert_close(one.changes[name].of(weight), other.changes[name].of(weight), rtol=0, atol=1e-6)


def test_no_strength_changes_no_weight_even_where_a_weight_has_more_rows_than_columns() -> None:
    tall = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row = Row(label="c", site="c|", state=C, weight=1.0, anchor_label="a", anchor=A)
    same = OCE(alpha=0.0).turned(tall, Rows.of([row], [], reg=1.0, dim=3), MOMENT)
    torch.testing.assert_close(same, tall, rtol=0, atol=1e-12)


def test_what_is_ordinary_is_read_once_for_all_concepts_of_a_folder(tmp_path: Path) -> None:
    house = Concept(target="house", preserve=("dog",))
    read: list[int] = []
    with BACKBONE.pipe.text_encoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel())):
        alone = ordinary_moment(BACKBONE, [house])
        first = sum(read)
        ordinary_moment(BACKBONE, [CAT], folder=tmp_path)
        read.clear()
        kept = ordinary_moment(BACKBONE, [house], folder=tmp_path)
        assert sum(read) < 0.5 * first
    assert torch.equal(alone, kept)
    torch.testing.assert_close(kept, word_moment(BACKBONE, ordinary_captions([house])), rtol=0, atol=1e-7)
