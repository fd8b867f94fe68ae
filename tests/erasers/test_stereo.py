"""STEREO: the aim of both stages, the search, and that stage 2 starts from the original weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.erasers import make_eraser
from erasure.erasers.esd import trained_by
from erasure.erasers.stereo import STEREO, redirected
from erasure.sampling import scheduled_prediction
from erasure.training.context import FitContext, TrainingTask
from erasure.training.draws.noised_images import NoisedImages
from erasure.training.draws.word_inversion import WordSearch
from erasure.training.objectives.guided import Guided, negatively_guided
from erasure.training.student import Student
from tests import tiny

CAT = Concept(target="cat")
BACKBONE: Any = backbone_of(tiny.sd1())
QUICK: dict[str, Any] = {**STEREO.quick}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=draws(seed))


def task(backbone: Any = BACKBONE) -> TrainingTask:
    trained = trained_by("x", backbone).__contains__
    return TrainingTask(context=FitContext(backbone=backbone), requests=[CAT], trained=trained)


def student() -> Student:
    moved = Student(BACKBONE, task().trained, None, draws())
    with torch.no_grad():
        for leaf in moved.trained:
            leaf += 0.05 * torch.randn(leaf.shape, generator=draws(1))
    return moved


def test_the_aim_is_esds_without_scenes_and_the_anchors_where_they_stand_alone() -> None:
    free, named, other = latents(0), latents(1), latents(2)
    torch.testing.assert_close(redirected(free, [], [named], 1.0, 0.7), negatively_guided(free, named, 0.7))
    # The sentence of the concept cancels the concept: what is left is the unconditional prediction.
    torch.testing.assert_close(redirected(free, [named], [named], 2.0, 2.0), free)
    torch.testing.assert_close(redirected(free, [named], [named], 1.0, 0.0), named)
    mean = redirected(free, [other], [named, latents(3)], 1.0, 3.0)
    torch.testing.assert_close(mean, other - 3 * ((named + latents(3)) / 2 - free))


def test_stage_one_is_the_loss_of_esd() -> None:
    texts = BACKBONE.encode(["cat"])
    one = STEREO(sample_steps=3).towards(task(), texts, texts, None, 0.0, 0.5)
    other = Guided(sample_steps=3, negative_guidance=0.5).loss(task())
    # ESD draws the concept and then its prompt.
    generator = draws()
    torch.randint(1, (), generator=generator)
    torch.testing.assert_close(one(student(), 0, generator), other(student(), 0, draws()))


def test_nothing_is_to_learn_where_the_aim_is_the_name_itself() -> None:
    texts = BACKBONE.encode(["cat"])
    loss = STEREO(sample_steps=3).towards(task(), texts, texts, texts, 1.0, 0.0)
    same = Student(BACKBONE, task().trained, None, draws())
    assert float(loss(same, 0, draws()).detach()) == pytest.approx(0.0, abs=1e-9)


def search(backbone: Any, concept: Concept, steps: int) -> WordSearch:
    images = NoisedImages(FitContext(backbone=backbone), [concept], images=2, image_steps=2)
    settings: dict[str, Any] = {"batch_size": 2, "weight_decay": 0.0, "initializer": "", "on_progress": None}
    return WordSearch(images=images, steps=steps, lr=0.05, **settings)


@pytest.mark.parametrize("kind", ["word", "states"])
def test_a_search_lowers_the_denoising_loss_and_leaves_the_model(kind: str) -> None:
    before = {name: p.detach().clone() for name, p in BACKBONE.parameters(lambda _: True).items()}
    batch = search(BACKBONE, CAT, 0).images.noised([0, 1] * 8, draws(3))
    errors = []
    for steps in (0, 15):
        text = getattr(search(BACKBONE, CAT, steps), kind)(task(), 0)
        with torch.no_grad():
            read = text.select([0] * len(batch))
            predicted = scheduled_prediction(BACKBONE, batch.latents, batch.timesteps, read)
        errors.append(float((predicted - batch.truth).square().mean()))
    assert errors[1] < errors[0]
    after = BACKBONE.parameters(lambda _: True)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "<sought>" not in BACKBONE.tokenizers()["text_encoder"].get_vocab()


def test_stage_two_starts_from_the_weights_before() -> None:
    eraser = make_eraser("stereo", **{**QUICK, "rounds": 2, "steps": 0})
    edit = eraser.fit([CAT], FitContext(backbone=BACKBONE))
    assert not any(change.delta.any() for change in edit.changes.values())
    texts = eraser.searched(task(), CAT)
    assert len(texts) == 3
    assert not torch.equal(texts.states[1], texts.states[2])
    assert torch.equal(texts.states[:1], BACKBONE.encode(["cat"]).states)


def test_a_model_of_several_vocabularies_is_searched_by_states() -> None:
    backbone: Any = backbone_of(tiny.sd3())
    assert "token ids" not in backbone.abilities
    eraser = make_eraser("stereo", **QUICK)
    assert len(eraser.searched(task(backbone), CAT)) == 2
    with pytest.raises(Exception, match="share one vocabulary"):
        replace(eraser, search="word").searched(task(backbone), CAT)
