"""EraseAnything: its four losses, and the forms in which its code differs from its paper."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.backbones.attention import cross_attention_layers
from erasure.concept import Concept
from erasure.edits.changes import exchanged
from erasure.erasers.eraseanything import EraseAnything, queried
from erasure.losses.contrastive import reverse_contrast
from erasure.training.context import FitContext, TrainingTask
from erasure.training.draws.prompt_pairs import PromptPairs
from erasure.training.finetune import WeightedLoss, alternating
from erasure.training.objectives.guided import Guided
from erasure.training.student import Student
from erasure.training.terms.contrast import Contrast, contrasted
from erasure.training.terms.suppression import Suppression, shuffled
from erasure.training.trajectories import PartialTrajectories, encoded
from erasure.training.word_attention.mass import word_columns, word_mass
from tests import tiny

CAT = Concept(target="cat", aliases=("kitten",), preserve=("dog", "bird"))
QUICK = EraseAnything(**{**EraseAnything.quick, "contrast_weight": 0.1})


def task_of(family: str, *concepts: Concept) -> TrainingTask:
    backbone: Any = backbone_of(tiny.EVERY[family]())
    context = FitContext(backbone=backbone)
    return TrainingTask(context=context, requests=concepts or (CAT,), trained=queried(backbone).__contains__)


def student_of(task: TrainingTask, moved: float = 0.0) -> Student:
    student = Student(task.backbone, task.trained, 2, torch.Generator())
    with torch.no_grad():
        for key, leaf in student.leaves.items():
            if key.part == "up":
                leaf += moved * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(5))
    return student


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_moving_teacher_is_the_frozen_one_until_the_first_update() -> None:
    task = task_of("flux")
    forms = [Guided(sample_steps=3, teacher=teacher, denoiser="frozen") for teacher in ("frozen", "student")]
    for moved in (0.0, 0.5):
        student = student_of(task, moved)
        frozen, moving = (
            float(form.loss(task)(student, 0, torch.Generator().manual_seed(0)).detach()) for form in forms
        )
        assert (frozen == pytest.approx(moving, rel=1e-3)) == (moved == 0)


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_finished_latents_are_of_the_end_of_the_trajectory_whatever_their_timestep(family: str) -> None:
    task = task_of(family)
    backbone = task.backbone
    pairs = PromptPairs.of(backbone, [CAT], "bare")

    def batches(pairing: Any) -> list[tuple[Tensor, Tensor, list[int]]]:
        path = PartialTrajectories(
            backbone, pairs.targets, pairs.draw, steps=3, guidance_scale=3.0, uses=3, batch_size=1, pairing=pairing
        )
        generator = torch.Generator().manual_seed(0)
        return [path.next(generator) for _ in range(3)]

    finished, exact = batches("any"), batches("exact")
    assert all(torch.equal(x, finished[0][0]) for x, _, _ in finished)
    assert not any(torch.equal(x, finished[0][0]) for x, _, _ in exact)
    assert [float(timestep) for _, timestep, _ in finished] == [float(timestep) for _, timestep, _ in exact]
    x, timestep, _ = min(exact, key=lambda batch: float(batch[1]))
    both = [backbone.unconditional(), pairs.targets]
    with torch.no_grad():
        free, bound = (backbone.predict(x, timestep, read).float() for read in both)
    schedule = backbone.schedule
    prediction = schedule.prediction(free + 3 * (bound - free), x, timestep)
    expected = schedule.step(prediction, x, timestep, torch.zeros_like(timestep))
    torch.testing.assert_close(finished[0][0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["sd1", "sd3", "flux"])
def test_uniform_attention_gives_each_token_its_share(family: str) -> None:
    task = task_of(family)
    backbone, layers = task.backbone, list(cross_attention_layers(task.backbone))
    read = backbone.encode(["a photo of a cat", "cat"])
    queries = backbone.parameters(lambda name: ".to_q." in name or ".add_q_proj." in name)
    zeros = {name: torch.zeros_like(weight) for name, weight in queries.items()}
    latents = draws(0, 2, *backbone.latent_shape())
    with torch.no_grad(), exchanged(queries, zeros):
        mass = word_mass(backbone, layers, latents, torch.tensor(500), read, ["cat", "cat"])
    words = [float(row.sum()) for row in word_columns(read, ["cat", "cat"])[1]]
    text = read.states.shape[1]
    for each in mass.values():
        tokens = text if family == "sd1" else text + each.shape[2]
        for row, count in enumerate(words):
            torch.testing.assert_close(each[row], torch.full_like(each[row], count / tokens), rtol=1e-3, atol=0)


def test_words_are_found_in_every_encoder_of_a_stream() -> None:
    backbone: Any = backbone_of(tiny.EVERY["sd3"]())
    read = backbone.encode(["cat on a cat", "the cat"])
    columns, counted = word_columns(read, ["cat", "cat"])
    first = read.streams["text"].tokens[0].ids.shape[1]
    assert all(any(c < first for c in row) and any(c >= first for c in row) for row in columns.tolist())
    assert counted[0].sum() == 2 * counted[1].sum()


def test_shuffling_keeps_the_words_and_moves_the_name() -> None:
    template = "a bowl of {} on a table"
    mixed = {shuffled(template, torch.Generator().manual_seed(seed)) for seed in range(6)}
    assert len(mixed) > 3
    assert all(sorted(each.split()) == sorted(template.split()) for each in mixed)
    assert len({each.split().index("{}") for each in mixed}) > 1


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_suppression_falls_along_its_gradient_and_reaches_the_trained_keys(family: str) -> None:
    task = task_of(family)
    student = student_of(task)
    loss = Suppression().loss(task)
    loss(student, 0, torch.Generator())  # samples the latents
    value = loss(student, 0, torch.Generator().manual_seed(0))
    gradients = student(torch.autograd.grad, value, student.trained)
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    assert norm > 0
    with torch.no_grad():
        for leaf, gradient in zip(student.trained, gradients, strict=True):
            leaf -= 1e-2 / norm.sqrt() * gradient
        after = loss(student, 0, torch.Generator().manual_seed(0))
    assert after < value


def test_equal_features_give_the_logarithm_of_their_number_and_leaving_the_synonym_lowers_it() -> None:
    same = draws(0, 1, 8)
    assert float(reverse_contrast(same, same, same[:, None].expand(-1, 3, -1))) == pytest.approx(math.log(4), abs=1e-5)
    features, unrelated = draws(1, 1, 8), draws(2, 1, 3, 8)
    near, far = (float(reverse_contrast(features, synonym, unrelated)) for synonym in (features, -features))
    assert far < near
    closer = unrelated + features[:, None]
    assert float(reverse_contrast(features, features, closer)) < near


def test_the_contrast_is_of_concepts_with_a_synonym_and_unrelated_names() -> None:
    lone = Concept(target="gun")
    assert contrasted([CAT, lone]) == [CAT]
    task = task_of("sd1")
    student = student_of(task, 0.1)
    value = Contrast().loss(task)(student, 0, torch.Generator().manual_seed(0))
    gradients = student(torch.autograd.grad, value, student.trained)
    assert any(gradient.any() for gradient in gradients)
    losses = QUICK._keeping(task), replace(QUICK, keep_weight=0)._keeping(task_of("sd1", lone))
    assert [len(each) for each in losses] == [2, 0]


def test_kept_images_are_of_other_things_or_of_the_target_in_disguise() -> None:
    task = task_of("sd1")
    preserved = replace(QUICK, memory_size=4)._memory(task).prompts
    assert not any("cat" in prompt.split() or "kitten" in prompt.split() for prompt in preserved)
    disguised = replace(QUICK, memory_size=16, kept_images="target")._memory(task).prompts
    named = [sum(name in prompt.replace(",", "").split() for prompt in disguised) for name in ("cat", "kitten")]
    assert sum(named) == 16
    assert min(named) > 3


def test_alternation_has_one_group_of_losses_an_update() -> None:
    groups = [[WeightedLoss(loss=lambda *_, v=value: torch.tensor(v), weight=2.0)] for value in (1.0, 10.0)]
    loss = alternating(*groups)
    student, generator = student_of(task_of("sd1")), torch.Generator()
    assert [float(loss(student, step, generator)) for step in range(4)] == [2.0, 20.0, 2.0, 20.0]


def test_the_texts_queries_and_keys_are_trained_or_those_of_cross_attention() -> None:
    for family, layers in (("flux", {"add_q_proj", "add_k_proj"}), ("sd3", {"add_q_proj", "add_k_proj"})):
        names = queried(backbone_of(tiny.EVERY[family]()))
        assert {name.split(".")[-2] for name in names} == layers
    assert {name.split(".")[-2] for name in queried(backbone_of(tiny.sd1()))} == {"to_q", "to_k"}


def test_an_empty_anchor_is_the_unconditional_prompt() -> None:
    backbone: Any = backbone_of(tiny.EVERY["sd3"]())
    assert torch.equal(encoded(backbone, [""]).states, backbone.unconditional().states)
