"""What comes between a pipeline's loop and its denoiser."""

import copy
import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from erasure.errors import InputError
from erasure.guidance.batches import rows_of
from erasure.guidance.denoising import Denoising
from erasure.guidance.steps import Stepping, around_each_step
from tests import tiny

SCHEDULERS = [
    DDIMScheduler,
    PNDMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    DPMSolverMultistepScheduler,
]


def with_scheduler(pipe: Any, scheduler: Any) -> Any:
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}  # as Stable Diffusion has it
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    return pipe


def run(pipe: Any, *, n: int = 2, steps: int = 3, guidance_scale: float = 4.0, **kwargs: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    return pipe(
        ["a cat", "a dog"][:n],
        generator=generators,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="latent",
        **kwargs,
    ).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_hooks_that_change_nothing_leave_every_bit(scheduler: Any, family: str) -> None:
    pipe = with_scheduler(tiny.FAMILIES[family](), scheduler)
    before = run(pipe)
    calls: list[Denoising] = []

    def note(call: Denoising) -> Tensor:
        calls.append(call)
        return call.latents

    hooks = around_each_step(
        pipe, rows=lambda: 2, before=note, after=lambda _, output: output, stepped=lambda _, step: step.previous
    )
    with hooks:
        assert torch.equal(run(pipe), before)
    assert torch.equal(run(pipe), before)
    assert [call.step for call in calls] == list(range(len(pipe.scheduler.timesteps)))
    assert all(call.guided and call.total == len(calls) and call.latents.shape == (2, 4, 8, 8) for call in calls)
    assert [call.first for call in calls] == [True] + [False] * (len(calls) - 1)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_moved_latents_reach_both_the_denoiser_and_the_scheduler(scheduler: Any) -> None:
    """Moving the noise by a hook at the first step is the same as starting from the moved noise."""
    pipe = with_scheduler(tiny.sd1(), scheduler)
    pipe.scheduler.set_timesteps(3)
    noise, move = torch.randn(2, 4, 8, 8), 0.1 * torch.randn(2, 4, 8, 8)
    expected = run(pipe, latents=noise + move / float(pipe.scheduler.init_noise_sigma))
    with around_each_step(
        pipe, rows=lambda: 2, before=lambda call: call.latents + move if call.first else call.latents
    ):
        torch.testing.assert_close(run(pipe, latents=noise), expected, rtol=1e-3, atol=1e-4)


def test_changed_outputs_and_steps_reach_the_loop() -> None:
    pipe, seen = tiny.sd1(), []
    with around_each_step(pipe, rows=lambda: 2, after=lambda _, output: 0 * output):
        silent = run(pipe)
    pipe.unet.register_forward_hook(lambda module, args, output: (0 * output[0],))
    assert torch.equal(silent, run(pipe))

    def stay(call: Denoising, step: Stepping) -> Tensor:
        seen.append(step)
        return call.latents

    with around_each_step(pipe, rows=lambda: 2, stepped=stay):
        stayed = run(pipe, latents=torch.ones(2, 4, 8, 8))
    assert torch.equal(stayed, torch.ones(2, 4, 8, 8))
    assert len(seen) == 3
    assert seen[0].options["eta"] == 0.0


def test_a_copy_of_the_scheduler_makes_the_step_again() -> None:
    """What `stepped` is given is enough to repeat the scheduler's step, also where it draws noise."""
    pipe, wrong = with_scheduler(tiny.sd1(), EulerAncestralDiscreteScheduler), []
    twin: list[Any] = []

    def repeat(call: Denoising, step: Stepping) -> Tensor:
        if call.first:
            twin[:] = [copy.deepcopy(step.scheduler)]
        again = twin[0].step(step.prediction, call.timestep, call.latents, **step.options)
        wrong.append(float((again[0] - step.previous).abs().max()))
        return step.previous

    with around_each_step(pipe, rows=lambda: 2, stepped=repeat):
        run(pipe)
    assert wrong == [0.0] * 3


def test_several_hooks_see_what_the_earlier_ones_left() -> None:
    pipe, seen = tiny.sd1(), []

    def shift(call: Denoising) -> Tensor:
        seen.append(call.latents)
        return call.latents + 1

    with around_each_step(pipe, rows=lambda: 2, before=shift), around_each_step(pipe, rows=lambda: 2, before=shift):
        run(pipe, steps=1)
    assert torch.equal(seen[1], seen[0] + 1)
    with around_each_step(pipe, rows=lambda: 2, before=lambda call: call.latents + 2):
        twice = run(pipe, steps=1)
    with around_each_step(pipe, rows=lambda: 2, before=shift), around_each_step(pipe, rows=lambda: 2, before=shift):
        torch.testing.assert_close(run(pipe, steps=1), twice)


def test_nothing_is_left_on_the_pipeline_also_after_an_exception() -> None:
    pipe = tiny.sd1()
    before = run(pipe)

    def fail(call: Denoising) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), around_each_step(pipe, rows=lambda: 2, before=fail):
        run(pipe)
    assert not {"step", "set_timesteps", "scale_model_input"} & vars(pipe.scheduler).keys()
    assert not pipe.unet._forward_pre_hooks
    assert not pipe.unet._forward_hooks
    assert torch.equal(run(pipe), before)


def test_what_somebody_else_put_in_a_methods_place_is_called_and_put_back() -> None:
    pipe, calls = tiny.sd1(), []
    step = pipe.scheduler.step

    def note(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return step(*args, **kwargs)

    pipe.scheduler.step = note
    with around_each_step(pipe, rows=lambda: 2, stepped=lambda _, step: step.previous):
        run(pipe)
    assert len(calls) == 3
    assert pipe.scheduler.step is note


def test_a_deep_copy_of_the_scheduler_keeps_the_hooks_and_the_signatures() -> None:
    pipe, calls = tiny.sd1(), []

    def note(call: Denoising) -> Tensor:
        calls.append(call.step)
        return call.latents

    with around_each_step(pipe, rows=lambda: 2, before=note):
        assert "eta" in inspect.signature(pipe.scheduler.step).parameters
        other = copy.copy(pipe)
        other.scheduler = copy.deepcopy(pipe.scheduler)
        run(other)
    assert calls == [0, 1, 2]


def test_the_denoiser_outside_of_a_loop_is_left_alone() -> None:
    pipe = tiny.sd1()
    with around_each_step(pipe, rows=lambda: 2, after=lambda _, output: 0 * output):
        run(pipe)
        output = pipe.unet(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 77, 32)).sample
    assert output.abs().max() > 0


def test_rows_are_those_of_the_pictures_being_made() -> None:
    pipe = tiny.sd1()
    before = run(pipe)
    with around_each_step(pipe, rows=lambda: 0, after=lambda _, output: 0 * output):
        assert torch.equal(run(pipe), before)
    with (
        pytest.raises(InputError, match="expected the denoiser to be asked for 3 images, got 4 latents"),
        around_each_step(pipe, rows=lambda: 3, after=lambda _, output: output),
    ):
        run(pipe)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_predictions_at_the_loops_latents_are_the_loops_own(family: str, guidance_scale: float) -> None:
    pipe, wrong = tiny.FAMILIES[family](), []

    def compare(call: Denoising, output: Tensor) -> Tensor:
        assert call.guided == (guidance_scale > 1)
        wrong.append(float((call.predict(call.latents) - call.conditional(output)).abs().max()))
        wrong.append(float((call.predict_all(call.latents) - output).abs().max()))
        return output

    with around_each_step(pipe, rows=lambda: 2, after=compare), torch.no_grad():
        run(pipe, guidance_scale=guidance_scale)
    assert max(wrong) < 1e-5  # a batch of another size differs in the last bits


def test_rows_are_found_inside_of_what_a_denoiser_is_given() -> None:
    whole = torch.arange(4)
    value = {"a": whole, "b": [whole, (whole, "x")], "c": torch.ones(3), "d": torch.tensor(1.0), "e": None}
    found = rows_of(value, 4, slice(2, 4))
    assert found["a"].tolist() == [2, 3]
    assert found["b"][0].tolist() == [2, 3]
    assert found["b"][1][0].tolist() == [2, 3]
    assert isinstance(found["b"][1], tuple)
    assert found["c"].tolist() == [1, 1, 1]
    assert found["d"] == 1
    assert found["e"] is None
