"""Guidance by a classifier of latents: its training, its sign, and the sampling with it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from erasure.backbones import backbone_of
from erasure.eval.probes import MissingError, Models
from erasure.eval.probes.classifier_guidance import ClassifierGuidance, LatentClassifier, guided_by, pull
from erasure.profile import profile_of
from erasure.sampling import sample
from tests.contract.test_probes import SAMPLING, _Open, aim
from tests.eval.world import pipeline
from tests.tiny import sd1

AIM = aim(profile_of("tinyworld"))


class Linear(torch.nn.Module):
    """A logit that is linear in the latents."""

    def __init__(self, direction: torch.Tensor) -> None:
        super().__init__()
        self.direction = direction

    def forward(self, latents: torch.Tensor, schedule: Any, timestep: Any) -> torch.Tensor:
        return (latents * self.direction).flatten(1).sum(1)


def test_a_linear_classifier_pulls_in_its_direction_and_a_step_along_it_raises_the_logit() -> None:
    schedule = backbone_of(pipeline()).schedule
    direction = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    latents, timestep = torch.zeros(2, 4, 16, 16), torch.tensor([500])
    classifier = Linear(direction)
    # d log sigmoid(f) / dz = (1 - sigmoid(f)) direction, here a half of it
    expected = 0.5 * schedule.factors(timestep)[1] * direction
    torch.testing.assert_close(pull(classifier, schedule, latents, timestep), expected.expand(2, -1, -1, -1))
    before, plain = schedule.timesteps(10)[3:5], torch.zeros_like(latents)
    moved, still = (
        schedule.step(shift, latents, *before) for shift in (-pull(classifier, schedule, latents, timestep), plain)
    )
    assert (classifier(moved, schedule, timestep) > classifier(still, schedule, timestep)).all()


@pytest.mark.parametrize("scheduler", ["as it is", "euler", "v-prediction"])
def test_the_sampling_follows_the_classifier_and_no_classifier_leaves_it_alone(scheduler: str) -> None:
    pipe = sd1()
    if scheduler == "euler":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    if scheduler == "v-prediction":
        pipe.scheduler.register_to_config(prediction_type="v_prediction")
    backbone = backbone_of(pipe)
    direction = torch.randn(backbone.latent_shape(), generator=torch.Generator().manual_seed(1)) / 1000
    logits, latents = [], []
    for scale in (0.0, 100.0, 1000.0):
        with guided_by(backbone, Linear(direction), scale):
            latents.append(sample(pipe, ["a cat", "a dog"], [0, 1], SAMPLING, output="latents"))
        logits.append(Linear(direction)(latents[-1], None, None))
    assert torch.equal(latents[0], sample(pipe, ["a cat", "a dog"], [0, 1], SAMPLING, output="latents"))
    assert (logits[1] > logits[0]).all()
    assert (logits[2] > logits[1]).all()


def test_the_classifier_learns_to_tell_latents_apart_at_every_level() -> None:
    schedule = backbone_of(pipeline()).schedule
    generator = torch.Generator().manual_seed(0)
    shown, others = (torch.randn(32, 4, 8, 8, generator=generator) + shift for shift in (1.0, -1.0))
    trained = ClassifierGuidance(width=32, epochs=6)._trained(schedule, shown, others, seed=0)
    for level in (50, 500):
        timestep = torch.tensor([level])
        noisy = [
            schedule.noised(each, torch.randn(each.shape, generator=generator), timestep) for each in (shown, others)
        ]
        right = [(trained(each, schedule, timestep) > 0).float().mean() for each in noisy]
        assert right[0] > 0.9
        assert right[1] < 0.1


def test_the_material_is_the_classifier_and_needs_things_to_tell_apart() -> None:
    probe = ClassifierGuidance(**ClassifierGuidance.quick)
    models = Models(original=lambda: _Open(pipeline()))
    material = probe.material(models, AIM)
    LatentClassifier((4, 16, 16), 4).load_state_dict(material)
    with pytest.raises(MissingError, match="classifier-guidance: expected things to tell the concept from, got none"):
        probe.material(models, replace(AIM, siblings=(), kept=()))
