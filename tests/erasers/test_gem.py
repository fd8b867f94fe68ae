"""GEM: the set where its hinge rests, the path that it follows, and the patches that it trains."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.erasers.gem import GEM
from erasure.losses.contrastive import nearer_to
from erasure.training.context import FitContext, TrainingTask
from erasure.training.draws.prompt_pairs import PromptPairs
from erasure.training.objectives.nearer import Nearer
from erasure.training.student import Student
from erasure.training.trajectories import PartialTrajectories
from tests import tiny

CAT = Concept(target="cat", anchor="dog")
SAME = Concept(target="word " * 100 + "one", anchor="word " * 100 + "two")
QUICK = Nearer(sample_steps=5, until=0.4, denoiser="frozen")


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def descended(repel: float, margin: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a free vector rests that starts at the original, with anchor and original."""
    anchor, original = draws(0, 1, 6), draws(1, 1, 6)
    x = original.clone().requires_grad_()
    for _ in range(6000):
        loss = nearer_to(x, anchor, original, repel=repel, margin=margin).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x -= 5e-4 * gradient
    return x.detach(), anchor, original


def test_a_free_prediction_rests_half_way_or_at_the_edge_of_a_ball() -> None:
    x, anchor, original = descended(1.0)
    assert float((x - (anchor + original) / 2).norm() / (anchor - original).norm()) < 2e-3
    x, anchor, original = descended(0.5)
    apart = anchor - original
    centre, radius = anchor + 0.25 / 0.75 * apart, 0.5 * apart.norm() / 0.75
    assert float((x - centre).norm()) == pytest.approx(float(radius), rel=2e-3)
    x, anchor, original = descended(1.0, margin=1.0)
    assert float((x - anchor).norm() / (anchor - original).norm()) < 5e-3


def test_half_way_is_enough_at_repel_one_alone_and_without_repelling_it_is_a_distance() -> None:
    anchor, original = draws(0, 2, 3, 4), draws(1, 2, 3, 4)
    half = (anchor + original) / 2
    assert nearer_to(half, anchor, original).max() < 1e-5
    assert nearer_to(half, anchor, original, repel=0.9).min() > 0
    distance = (original - anchor).flatten(1).norm(dim=1)
    torch.testing.assert_close(nearer_to(original, anchor, original, repel=0.0), distance, rtol=1e-5, atol=0)


def test_the_gradient_does_not_depend_on_the_scale() -> None:
    anchor, original, x = draws(0, 1, 6), draws(1, 1, 6), draws(2, 1, 6)
    lengths = []
    for scale in (1.0, 1000.0):
        point = (scale * x).requires_grad_()
        (gradient,) = torch.autograd.grad(nearer_to(point, scale * anchor, scale * original, repel=0.5).sum(), point)
        lengths.append(float(gradient.norm()))
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)
    assert lengths[0] <= 1.5


def task_of(family: str, concept: Concept) -> tuple[TrainingTask, Student]:
    backbone: Any = backbone_of(tiny.EVERY[family]())
    trained = GEM().trained(backbone).__contains__
    task = TrainingTask(context=FitContext(backbone=backbone), requests=[concept], trained=trained, batch_size=2)
    return task, Student(backbone, trained, 2, torch.Generator())


@pytest.mark.parametrize("family", ["sd2", "flux"])
def test_the_loss_at_the_start_is_the_distance_of_both_predictions_along_the_path(family: str) -> None:
    task, student = task_of(family, CAT)
    value = QUICK.loss(task)(student, 0, torch.Generator().manual_seed(0))
    pairs = PromptPairs.of(task.backbone, [CAT], "bare")
    path = PartialTrajectories(
        task.backbone,
        pairs.targets,
        pairs.draw,
        steps=5,
        guidance_scale=QUICK.start_guidance,
        uses=2,
        batch_size=2,
        stops=lambda _: [0, 1],
    )
    generator, distances = torch.Generator().manual_seed(0), []
    for _ in range(2):
        x, timestep, rows = path.next(generator)
        with torch.no_grad():
            target, anchor = (
                task.backbone.predict(x, timestep, each.select(rows)) for each in (pairs.targets, pairs.anchors)
            )
        distances.append((target - anchor).flatten(1).norm(dim=1))
    assert float(value) == pytest.approx(100 * float(torch.stack(distances).mean()), rel=1e-2)
    gradients = student(torch.autograd.grad, value, student.trained)
    assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("repel", [1.0, 0.5])
def test_an_anchor_that_reads_like_the_target_moves_nothing(repel: float) -> None:
    task, student = task_of("sd1", SAME)
    value = replace(QUICK, repel=repel).loss(task)(student, 0, torch.Generator().manual_seed(0))
    assert float(value) == pytest.approx(0, abs=100 * 1e-3)  # the norms have 1e-6 under their root


def test_a_path_has_eleven_of_28_steps() -> None:
    assert Nearer().path_steps == 11


def test_queries_and_keys_are_trained_of_the_image_or_of_both_streams() -> None:
    backbone: Any = backbone_of(tiny.EVERY["flux"]())
    image, both = (GEM(streams=streams).trained(backbone) for streams in ("image", "both"))
    layers = {name.rpartition(".")[0].rpartition(".")[2] for name in image}
    assert layers == {"to_q", "to_k"}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in both - image} == {"add_q_proj", "add_k_proj"}
    assert not any("single_transformer_blocks" in name for name in both)
    unet = GEM().trained(backbone_of(tiny.sd1()))
    assert unet
    assert all(".attn2.to_q." in name or ".attn2.to_k." in name for name in unet)
