"""AdvUnlearn: the prefix, the attack, both losses, and what is trained."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from erasure.backbones import backbone_of
from erasure.backbones.text_blocks import clip_encoders, encoder_blocks
from erasure.concept import Concept
from erasure.erasers import make_eraser
from erasure.erasers.advunlearn import AdvUnlearn
from erasure.sampling import scheduled_prediction
from erasure.training.context import FitContext, TrainingTask
from erasure.training.draws.prefixes import encoded_behind, word_rows
from erasure.training.inner_attack import RunningAttack, VectorAttack
from erasure.training.objectives.guided import Guided
from erasure.training.student import Student
from tests import tiny

CAT = Concept(target="cat")
BACKBONE: Any = backbone_of(tiny.sd1())
QUICK: dict[str, Any] = {**AdvUnlearn.quick}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task() -> TrainingTask:
    names = set(encoder_blocks(BACKBONE, "text_encoder"))
    return TrainingTask(context=FitContext(backbone=BACKBONE), requests=[CAT], trained=names.__contains__)


def student(noise: float = 0.0) -> Student:
    moved = Student(BACKBONE, task().trained, None, draws())
    with torch.no_grad():
        for leaf in moved.trained:
            leaf += noise * torch.randn(leaf.shape, generator=draws(1))
    return moved


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_prefix_of_words_is_the_prompt_with_these_words(family: str) -> None:
    backbone: Any = backbone_of(tiny.EVERY[family]())
    plain, longer = backbone.encode(["cat"]), backbone.encode(["dcat"])
    # A byte a token: the prefix is the embedding of "d", the tables side by side.
    letter = longer.ids[0, 1]
    read = encoded_behind(backbone, plain.ids, word_rows(backbone)[letter][None])
    torch.testing.assert_close(read.states, longer.states, rtol=1e-4, atol=1e-5)
    if longer.pooled is not None:
        torch.testing.assert_close(read.pooled, longer.pooled, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in backbone.component("text_encoder").modules())


def test_a_prompt_that_is_cut_keeps_its_end() -> None:
    ids = BACKBONE.encode(["a" * 200]).ids
    read = encoded_behind(BACKBONE, ids, word_rows(BACKBONE)[:3])
    assert int(read.eot[0]) == ids.shape[1] - 1
    assert encoded_behind(BACKBONE, ids, None).eot[0] == ids.shape[1] - 1


def test_the_attack_finds_a_prefix_that_undoes_and_there_is_nothing_to_undo_before() -> None:
    x, t = torch.randn(1, 4, 8, 8, generator=draws()), torch.tensor(600)
    read = BACKBONE.encode(["cat"])
    bound = scheduled_prediction(BACKBONE, x, t, read).detach()

    def undone(moved: Student, vectors: torch.Tensor | None) -> torch.Tensor:
        def predicted() -> torch.Tensor:
            return scheduled_prediction(BACKBONE, x, t, encoded_behind(BACKBONE, read.ids, vectors))

        return F.mse_loss(moved(predicted), bound)

    assert float(undone(student(), None).detach()) == pytest.approx(0.0, abs=1e-12)
    erased = student(0.2)
    settings = VectorAttack(vectors=2, updates=15, lr=0.05)
    start = settings.begun(word_rows(BACKBONE), draws()).vectors.detach()
    before = [leaf.detach().clone() for leaf in erased.trained]
    vectors = RunningAttack(settings, word_rows(BACKBONE)).moved(lambda vectors: undone(erased, vectors), draws())
    assert float(undone(student(), start).detach()) > 0
    assert undone(erased, vectors) < undone(erased, start)
    assert all(torch.equal(leaf, old) for leaf, old in zip(erased.trained, before, strict=True))


def test_what_stays_costs_nothing_at_the_start() -> None:
    same = student()
    loss = AdvUnlearn(sample_steps=3, retain_batch=2).retaining(task())(same, 0, draws())
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    gradients = same(torch.autograd.grad, loss, same.trained)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)


def test_without_an_attack_it_is_esd_on_the_text_encoder() -> None:
    settings: dict[str, Any] = {"sample_steps": 3, "negative_guidance": 0.5}
    one = AdvUnlearn(**settings, warm_up=9).erasing(task())(student(), 0, draws())
    other = Guided(**settings, denoiser="frozen").loss(task())(student(), 0, draws())
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["together", "alternate"])
def test_blocks_and_final_norm_of_the_encoders_change_and_nothing_else(mode: str) -> None:
    eraser = make_eraser("advunlearn", **{**QUICK, "retain_mode": mode, "attack_latents": "fresh"})
    edit = eraser.fit([CAT], FitContext(backbone=BACKBONE))
    assert edit.changes.keys() == set(encoder_blocks(BACKBONE, "text_encoder"))
    assert not any("embed" in name for name in edit.changes)
    assert all(name.startswith(tuple(clip_encoders(BACKBONE))) for name in edit.changes)


def test_without_a_weight_for_what_stays_every_update_erases() -> None:
    modes = ("together", "alternate")
    erasers = [make_eraser("advunlearn", **{**QUICK, "retain": 0.0, "retain_mode": mode}) for mode in modes]
    one, other = (eraser.fit([CAT], FitContext(backbone=BACKBONE)).changes for eraser in erasers)
    assert all(torch.equal(one[name].delta, other[name].delta) for name in one)


def test_a_model_of_several_vocabularies_is_refused() -> None:
    with pytest.raises(
        Exception, match="advunlearn: expected a model whose text encoders share one vocabulary, got flux"
    ):
        make_eraser("advunlearn", **QUICK).fit([CAT], FitContext(backbone=backbone_of(tiny.flux())))
