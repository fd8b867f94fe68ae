"""CASteer: the reflection of one and several directions, the pixels that stay, the steps between those of the fit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.errors import InputError
from erasure.guidance.casteer import CASteerGuidance
from erasure.sampling import SamplingSettings, sample
from tests import tiny
from tests.pieces import guidance


def steering(*directions: list[float], **settings: Any) -> CASteerGuidance:
    names = tuple("abcdef"[: len(directions)])
    tensors = {"layer": torch.tensor([list(directions)]).transpose(0, 1)}
    return CASteerGuidance(concepts=names, targets=names, directions=tensors, direction_timesteps=(500.0,), **settings)


def steered(guided: CASteerGuidance, output: list[float]) -> list[float]:
    return guided.steered("layer", torch.tensor([[output]]), 10.0)[0, 0].tolist()


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_specifications_example() -> None:
    s = [1.0, 0, 0]
    assert steered(steering(s), [3.0, 4, 0]) == pytest.approx([-3, 4, 0])
    assert steered(steering(s, strength=1.0, rescale=False), [3.0, 4, 0]) == pytest.approx([0, 4, 0])
    assert steered(steering(s, strength=1.0), [3.0, 4, 0]) == pytest.approx([0, 5, 0])
    assert steered(steering(s), [-3.0, 4, 0]) == [-3, 4, 0]
    assert steered(steering(s, clip=False), [-3.0, 4, 0]) == pytest.approx([3, 4, 0])


def test_a_pixel_that_stays_keeps_every_bit() -> None:
    output, direction = random(0, 2, 9, 8), torch.nn.functional.normalize(random(1, 8), dim=0)
    assert torch.equal(steering(direction.tolist(), strength=0.0).steered("layer", output, 1.0), output)
    away = (output @ direction) <= 0
    changed = steering(direction.tolist()).steered("layer", output, 1.0)
    assert torch.equal(changed[away], output[away])
    torch.testing.assert_close(changed.norm(dim=-1), output.norm(dim=-1))
    torch.testing.assert_close(changed[~away] @ direction, -(output[~away] @ direction))


def test_a_projection_done_twice_is_done_once() -> None:
    direction = torch.nn.functional.normalize(random(1, 8), dim=0)
    project = steering(direction.tolist(), strength=1.0, rescale=False)
    once = project.steered("layer", random(0, 2, 9, 8), 1.0)
    assert (once @ direction).max() < 1e-5
    torch.testing.assert_close(project.steered("layer", once, 1.0), once)


def test_several_directions() -> None:
    one, other = [1.0, 0, 0], [0.6, 0.8, 0]
    output = [2.0, 1, 3]
    halves = steered(steering(one, other, several="mean", rescale=False), output)
    mean = torch.tensor([0.8, 0.4, 0])
    torch.testing.assert_close(torch.tensor(halves), torch.tensor(output) - 2 * (torch.tensor(output) @ mean) * mean)
    first = steered(steering(one, clip=False), output)
    then = steered(steering(other, clip=False), first)
    assert steered(steering(one, other, several="each", clip=False), output) == pytest.approx(then)
    both, turned = (
        steered(steering(*pair, clip=False, strength=1.0, rescale=False), output)
        for pair in ((one, other), (other, one))
    )
    assert both == pytest.approx(turned)
    assert both == pytest.approx([0, 0, 3], abs=1e-6)  # the span is gone
    # Two names of one thing are one direction.
    assert steered(steering(one, one), output) == pytest.approx(steered(steering(one), output))


def test_a_step_between_those_of_the_fit_has_a_direction_between() -> None:
    guided = CASteerGuidance(
        concepts=("a",),
        targets=("a",),
        directions={"layer": torch.tensor([[[1.0, 0], [0, 1.0]]])},
        direction_timesteps=(800.0, 400.0),
    )
    for timestep, share in ((999.0, 0.0), (800.0, 0.0), (700.0, 0.25), (400.0, 1.0), (3.0, 1.0)):
        between = torch.tensor([1 - share, share])
        torch.testing.assert_close(guided.directions_of("layer", timestep)[0], between / between.norm())


def test_rows_of_removals_are_joined_by_name_whatever_their_order() -> None:
    parts = [steering([1.0, 0, 0]), steering([0.0, 1, 0], [0, 0, 1.0])]
    (joined,) = CASteerGuidance.merged(parts)
    (turned,) = CASteerGuidance.merged(parts[::-1])
    assert joined.targets == turned.targets == ("a", "a", "b")
    assert torch.equal(joined.directions["layer"][2], turned.directions["layer"][2])
    assert len(CASteerGuidance.merged([parts[0], steering([1.0, 0, 0], strength=1.0)])) == 2


def test_without_the_directions_of_a_fit_nothing_is_sampled() -> None:
    with (
        pytest.raises(InputError, match=r"casteer.directions: expected the directions of a fit, got none"),
        CASteerGuidance(concepts=("cat",)).applied_to(tiny.sd1()),
    ):
        pass


def test_the_prompts_rows_alone_are_changed_unless_both_are_named() -> None:
    pipe = tiny.sd1()
    layer = next(module for name, module in pipe.unet.named_modules() if name.endswith("attn2"))
    seen: list[Tensor] = []

    def outputs(**settings: Any) -> Tensor:
        seen.clear()
        with guidance(CASteerGuidance, pipe, **settings).applied_to(pipe):
            handle = layer.register_forward_hook(lambda _, args, output: seen.append(output.clone()))
            sample(pipe, ["a cat", "a tree"], [0, 1], SamplingSettings(steps=1, guidance_scale=4.0))
            handle.remove()
        return seen[0]

    plain, conditional = outputs(strength=0.0), outputs()
    assert torch.equal(conditional[:2], plain[:2])
    assert all(not torch.equal(conditional[row], plain[row]) for row in (2, 3))
    both = outputs(branches="both", only_named=True)
    assert [torch.equal(both[row], plain[row]) for row in range(4)] == [False, True, False, True]
