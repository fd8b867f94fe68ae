"""AdaVD: the formulas for one and several concepts, both branches, and the tokens that stay."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.guidance.adavd import AdaVDGuidance
from erasure.sampling import SamplingSettings, sample
from tests import tiny

ONE = AdaVDGuidance(concepts=("cat",))
PLAIN = AdaVDGuidance(concepts=("cat",), shifted=False)


def without(guidance: AdaVDGuidance, value: list[float], *targets: list[float]) -> list[float]:
    return guidance.without(torch.tensor([value]), torch.tensor([list(targets)]))[0].tolist()


def latents(pipe: Any, prompts: list[str]) -> Tensor:
    settings = SamplingSettings(steps=2, guidance_scale=4.0)
    return sample(pipe, prompts, list(range(len(prompts))), settings, output="latents")


def test_the_specifications_example() -> None:
    assert without(ONE, [2.0, 1, 0], [2.0, 0, 0]) == pytest.approx([1.889097, 1, 0], abs=1e-4)
    assert without(PLAIN, [2.0, 1, 0], [2.0, 0, 0]) == pytest.approx([0, 1, 0], abs=1e-6)
    assert without(ONE, [2.0, 0.2, 0], [2.0, 0, 0]) == pytest.approx([-1.994018, 0.2, 0], abs=1e-4)
    several = ([1.0, 0, 0], [1.0, 1, 0])
    assert without(PLAIN, [2.0, 3, 1], *several) == pytest.approx([0, 0, 1], abs=1e-5)
    assert without(ONE, [2.0, 3, 1], *several) == pytest.approx([-2.897476, -1.897476, 1], abs=1e-3)
    joint = without(ONE, [1.0, 1, 1, 2, 1, 0], [1.0, 1, 1, 2, 0, 0])
    assert joint == pytest.approx([-0.264292] * 3 + [-0.528584, 1, 0], abs=1e-3)


def test_projections_and_reflections() -> None:
    generator = torch.Generator().manual_seed(0)
    values, target = (torch.randn(5, 8, generator=generator) for _ in range(2))
    one = PLAIN.without(values, target[:, None])
    torch.testing.assert_close((one * target).sum(-1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(PLAIN.without(one, target[:, None]), one)
    mirrored = AdaVDGuidance(concepts=("cat",), threshold=-9.0).without(values, target[:, None])
    torch.testing.assert_close(mirrored.norm(dim=-1), values.norm(dim=-1))
    torch.testing.assert_close((mirrored * target).sum(-1), -(values * target).sum(-1), atol=1e-5, rtol=1e-5)


def test_the_span_counts_and_not_the_list() -> None:
    generator = torch.Generator().manual_seed(0)
    values, targets = torch.randn(5, 8, generator=generator), torch.randn(5, 3, 8, generator=generator)
    removed = PLAIN.without(values, targets)
    assert (removed[:, None] * targets).sum(-1).abs().max() < 1e-4
    torch.testing.assert_close(PLAIN.without(values, targets[:, [2, 0, 1]]), removed, atol=1e-4, rtol=1e-4)
    more = torch.cat([targets, targets[:, :1] + 2 * targets[:, 1:2]], 1)
    torch.testing.assert_close(PLAIN.without(values, more), removed, atol=1e-4, rtol=1e-4)


def test_a_token_far_from_the_concept_keeps_every_bit() -> None:
    values = torch.tensor([[0.8, 0.6, 0.3]])
    assert torch.equal(ONE.without(values, torch.tensor([[[1.0, 0, 0]]])), values)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_values_of_the_prompts_words_alone_are_changed(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    layers = [module for name, module in pipe.unet.named_modules() if name.endswith("attn2.to_v")]
    seen: list[Tensor] = []

    def values(**settings: Any) -> Tensor:
        seen.clear()
        with AdaVDGuidance(concepts=("cat",), **settings).applied_to(pipe):
            handle = layers[0].register_forward_hook(lambda _, args, output: seen.append(output.clone()))
            latents(pipe, ["a cat"])
            handle.remove()
        return seen[0]

    plain, changed = values(strength=0.0), values(shifted=False)
    assert torch.equal(changed[0], plain[0])  # the unconditional row
    assert torch.equal(changed[1, 0], plain[1, 0])  # start of text
    assert (changed[1, 1:] != plain[1, 1:]).any(-1).all()
    joint = values(shifted=False, branches="joint")
    assert torch.equal(joint[:, 0], plain[:, 0])
    assert (joint[1, 1:] != plain[1, 1:]).any(-1).all()
    assert bool((joint[0, 1:] != plain[0, 1:]).any()) is bool(plain[0].any())  # XL reads zeros without a prompt
    assert not any(module._forward_hooks for module in pipe.unet.modules())
