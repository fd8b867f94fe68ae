"""Erasers that began on UNets, on models of flow matching: the same formulas with velocities."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.attention import cross_attention_layers
from erasure.closed_form.sentences import SentencePair
from erasure.concept import Concept
from erasure.erasers.esd import ESD
from erasure.erasers.trce import TRCE, steered
from erasure.losses.contrastive import steering_hinge
from erasure.training.context import FitContext
from erasure.training.matching import LayerReading
from erasure.training.replay import noised, replay_loss
from erasure.training.replay_memory import Memory
from erasure.training.steering import HingeCounter, Steering, SteeringPlan, SteeringPrompts, planned_latents
from erasure.training.student import Student
from tests.tiny import JOINT

GUN = Concept(target="gun", anchor="flower", kind="unsafe", preserve=("house",))


@pytest.fixture(params=sorted(JOINT), scope="module")
def backbone(request: pytest.FixtureRequest) -> Any:
    return backbone_of(JOINT[request.param]())


def velocities(backbone: Backbone, latents: Tensor, timestep: Tensor, prompts: list[str]) -> list[Tensor]:
    """Return the denoiser's output for each prompt."""
    with torch.no_grad():
        reads = [backbone.encode([prompt]) if prompt else backbone.unconditional() for prompt in prompts]
        return [backbone.predict(latents, timestep, read.expand(len(latents))).float() for read in reads]


def student_of(backbone: Backbone) -> Student:
    return Student(backbone, steered(backbone).__contains__, None, torch.Generator())


def test_esd_learns_the_guided_velocity_at_a_level_of_the_sampler(
    backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: list[tuple[Tensor, Tensor]] = []
    predict = type(backbone).predict

    def recorded(self: Any, latents: Tensor, timestep: Tensor, conditioning: Any) -> Tensor:
        inputs.append((latents, timestep))
        return predict(self, latents, timestep, conditioning)

    eraser = ESD(sample_steps=4, negative_guidance=1.5)
    task = eraser._task([Concept(target="gun")], FitContext(backbone=backbone))
    loss, student = eraser._objective.loss(task), student_of(backbone)
    with monkeypatch.context() as patch:
        patch.setattr(type(backbone), "predict", recorded)
        value = loss(student, 0, torch.Generator().manual_seed(1))
    latents, timestep = inputs[-1]
    assert float(timestep) in backbone.schedule.timesteps(4).tolist()
    target, free = velocities(backbone, latents, timestep, ["gun", ""])
    expected = 2.5**2 * (target - free).square().mean()
    torch.testing.assert_close(value.detach(), expected, rtol=1e-3, atol=1e-9)


def test_trces_hinge_is_of_velocities_in_the_noisiest_part_of_the_sampler(backbone: Any) -> None:
    twin = SentencePair.of("a photo of a {}", "gun", GUN)
    plan = SteeringPlan.drawn(
        1,
        trajectories=1,
        epochs=2,
        early_steps=2,
        null_trajectories=1,
        batch_size=2,
        preserve_batch=1,
        sample_steps=4,
        guidance_scale=3.0,
        seed=0,
    )
    malicious, null = planned_latents([twin.prompt], plan, FitContext(backbone=backbone))
    steering = Steering(
        backbone=backbone,
        prompts=SteeringPrompts.of(backbone, [twin]),
        plan=plan,
        target_guidance=2.0,
        margin=0.01,
        beta=1.0,
    )
    student = student_of(backbone)
    value = steering.loss(malicious, {}, HingeCounter())(student, 0, torch.Generator())
    levels, hinges = backbone.schedule.timesteps(4), []
    for row, (_, step) in enumerate(plan.malicious):
        assert levels[step] >= levels[1], "an early step"
        bound, safe, free = velocities(
            backbone, malicious[row : row + 1].float(), levels[step], [twin.prompt, twin.safe_prompt, ""]
        )
        to_safe, to_unsafe = safe + 2 * (safe - free), bound + 2 * (bound - free)
        hinges += [steering_hinge(each, to_safe, to_unsafe, 0.01) for each in (bound, free)]
    assert float(value.detach()) == pytest.approx(float(torch.cat(hinges).mean()), rel=1e-2)
    held = steering.preserving(null)(student, 0, torch.Generator())
    assert float(held.detach()) == pytest.approx(0, abs=1e-9)


def test_trces_text_stage_moves_a_sentence_where_each_stream_enters(backbone: Any, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a house\na tree\n")
    eraser = TRCE(stages="text", reg=1e-3, frames=("a {}",), captions=str(captions))
    edit = eraser.fit([GUN], FitContext(backbone=backbone))
    assert set(edit.changes) == {
        "transformer.context_embedder.weight",
        "transformer.time_text_embed.text_embedder.linear_1.weight",
    }
    name = "transformer.time_text_embed.text_embedder.linear_1.weight"
    weight = backbone.parameters({name}.__contains__)[name].detach().double()
    pair = SentencePair.of("a {}", "gun", GUN)
    read, safe = (backbone.encode([prompt]).pooled.double() for prompt in (pair.prompt, pair.safe_prompt))
    goal = safe @ weight.T
    edited = edit.changes[name].of(weight) + weight
    assert (read @ edited.T - goal).norm() < 0.9 * (read @ weight.T - goal).norm()


def test_duges_maps_are_the_columns_of_the_text_and_the_same_prompt_has_no_distance(backbone: Any) -> None:
    layers = list(cross_attention_layers(backbone))
    reading = LayerReading(backbone=backbone, match="maps", layers=layers)
    latents, timestep = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator()), torch.tensor(500.0)
    read = backbone.encode(["a photo of a gun"])
    with torch.no_grad():
        maps = reading.read(latents, timestep, read)
        distance = reading.distance(latents, timestep, read, dict(maps))
    for each in maps.values():
        assert each.shape[-1] == read.states.shape[1]
        assert (each.sum(-1) < 1).all(), "the image takes the rest"
    assert float(distance) == pytest.approx(0, abs=1e-10)


def test_duges_replay_is_the_loss_of_flow_matching(backbone: Any) -> None:
    clean = torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0)).half()
    memory = Memory(prompts=("a house", "a house"), latents=clean)
    loss = replay_loss(memory, FitContext(backbone=backbone), batch_size=1, prompt_dropout=0.0, distill=False)
    value = loss(student_of(backbone), 0, torch.Generator().manual_seed(3)).detach()
    generator = torch.Generator().manual_seed(3)
    row = int(torch.randint(2, (), generator=generator))
    torch.rand((), generator=generator)
    x, timestep, noise = noised(backbone, clean[row : row + 1].float(), generator)
    level = timestep / backbone.schedule.total
    torch.testing.assert_close(x, (1 - level) * clean[row : row + 1].float() + level * noise)
    [velocity] = velocities(backbone, x, timestep, ["a house"])
    expected = (velocity - (noise - clean[row : row + 1].float())).square().mean()
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)
