"""Few steps: the target of the distillation, and the patch on another model."""

import copy

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.eval.probes import Models, Subject
from erasure.eval.probes.few_steps import FewSteps, between, one_step_prediction, patch_of, student_levels
from erasure.profile import profile_of
from erasure.sampling import noise, scheduled_prediction, trajectory_latents
from tests.contract.test_probes import _Open, aim
from tests.eval.world import pipeline
from tests.tiny import sd1

AIM = aim(profile_of("tinyworld"))


def test_one_unguided_substep_gives_the_teachers_own_prediction() -> None:
    backbone = backbone_of(pipeline())
    states = backbone.encode(["a cat", "a dog"])
    start = noise([torch.Generator().manual_seed(i) for i in range(2)], backbone.latent_shape())
    levels = student_levels(backbone, 4)
    run = between(levels[0], levels[1], 1)
    with torch.no_grad():
        teacher = scheduled_prediction(backbone, start, run[0], states)
    after = backbone.schedule.step(teacher, start, run[0], run[1])
    goal = one_step_prediction(backbone.schedule, start, after, run[0], run[1])
    torch.testing.assert_close(goal, teacher, atol=1e-4, rtol=1e-4)


def test_the_target_reproduces_the_guided_steps_by_one() -> None:
    backbone = backbone_of(pipeline())
    states = backbone.encode(["a cat"])
    start = noise([torch.Generator().manual_seed(0)], backbone.latent_shape())
    levels = student_levels(backbone, 4)
    run = between(levels[1], levels[2], 5)
    after = trajectory_latents(
        backbone, start, states, backbone.unconditional(), steps=6, guidance_scale=4.0, stops=[5], timesteps=run
    )[5]
    goal = one_step_prediction(backbone.schedule, start, after, run[0], run[-1])
    torch.testing.assert_close(backbone.schedule.step(goal, start, run[0], run[-1]), after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [None, EulerDiscreteScheduler, PNDMScheduler])
def test_levels_are_those_of_the_pipelines_scheduler_each_once(kind: type | None) -> None:
    pipe = sd1()
    if kind is not None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)  # type: ignore[attr-defined]
    levels = student_levels(backbone_of(pipe), 4)
    assert not levels.is_floating_point()
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()
    assert len(levels) >= 4
    assert between(levels[0], levels[1], 3)[[0, -1]].tolist() == levels[:2].tolist()


def test_the_patch_is_that_of_the_original_whatever_it_is_added_to() -> None:
    probe = FewSteps(**{**FewSteps.quick, "arms": ("patch",), "updates": 3})
    material = probe.material(Models(original=lambda: _Open(pipeline())), AIM)
    patch = patch_of(material, "patch 2")
    sites = backbone_of(pipeline()).parameters(lambda name: name.startswith("unet"))
    assert set(patch) == {name for name, weight in sites.items() if weight.ndim == 2}
    assert any(float(change.norm) > 0 for change in patch.values())
    edited = copy.copy(pipeline())
    edited.unet = copy.deepcopy(edited.unet)
    with torch.no_grad():
        for weight in backbone_of(edited).parameters(lambda name: "to_v.weight" in name).values():
            weight.mul_(-1)
    images = []
    for pipe in (pipeline(), edited):
        [outcome] = probe.outcomes(Subject(pipe=pipe, aim=AIM, material=material))
        assert not outcome.comparable
        images.append(np.stack([np.asarray(image) for image in outcome.images]))
    assert not np.array_equal(*images)


def test_half_of_the_trajectories_ask_for_the_concept_in_the_arm_with_it() -> None:
    probe = FewSteps(trajectories=4)
    assert probe._captions(AIM, "patch") == ["a photo of a dog", "a tree", "a photo of a dog", "a tree"]
    mixed = probe._captions(AIM, "patch with the concept")
    assert mixed == ["a photo of a dog", "a photo of a cat", "a tree", "a cat on the beach"]


def test_more_steps_than_the_images_have_are_no_dose() -> None:
    steps = AIM.sampling.steps
    for doses in ((float(steps),), (100.0, 1.0)):
        with pytest.raises(InputError, match=f"few-steps.doses: expected fewer steps than the {steps} of the images"):
            FewSteps(doses=doses).material(Models(original=lambda: _Open(pipeline())), AIM)
