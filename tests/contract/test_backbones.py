"""What every backbone owes the methods."""

from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.backbones.base import Backbone
from erasure.backbones.schedule import NoiseSchedule
from erasure.errors import InputError, UnknownNameError
from tests import tiny


@pytest.fixture(scope="module", params=sorted(tiny.FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Any:
    return backbone_of(tiny.FAMILIES[request.param]())


def latents(n: int) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_is_a_backbone(backbone: Any) -> None:
    assert isinstance(backbone, Backbone)
    assert (backbone.device, backbone.dtype) == (torch.device("cpu"), torch.float32)


def test_a_prompt_reads_the_same_in_any_company(backbone: Any) -> None:
    prompts = ["a cat", "a dog", "", "a cat"]
    together = backbone.encode(prompts)
    assert together.prompts == tuple(prompts)
    for row, prompt in enumerate(prompts):
        alone = backbone.encode([prompt])
        torch.testing.assert_close(together.states[row], alone.states[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(together.ids[row], alone.ids[0])
    assert not together.states.requires_grad


def test_without_trailing_states_the_others_are_the_same_and_padding_is_not_read(backbone: Any) -> None:
    # More than one batch, so that rows of like length are read together and put back in order.
    prompts = [" ".join(["a cat sat"] * (1 + at % 7)) for at in range(80)] + ["", "x" * 200]
    for some in (prompts, prompts[:40]):
        whole, cut = backbone.encode(some), backbone.encode(some, trailing=False)
        length = cut.states.shape[1]
        assert length == int(whole.eot.max()) + 1
        assert cut.prompts == whole.prompts
        assert torch.equal(cut.eot, whole.eot)
        assert torch.equal(cut.ids, whole.ids[:, :length])
        assert cut.offsets == tuple(row[:length] for row in whole.offsets)
        behind = torch.arange(length) > whole.eot[:, None]
        assert cut.states[behind].isnan().all()
        torch.testing.assert_close(cut.states[~behind], whole.states[:, :length][~behind], rtol=1e-4, atol=1e-5)
        if whole.pooled is not None:
            torch.testing.assert_close(cut.pooled, whole.pooled, rtol=1e-4, atol=1e-5)
    assert not cut.states.requires_grad
    seen: list[int] = []
    encoder = backbone.component("text_encoder")
    with_hook = encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0].shape[1]), with_kwargs=True
    )
    with with_hook:
        backbone.encode(["a cat"], trailing=False)
    assert seen == [backbone.encode(["a cat"]).eot.item() + 1]


@pytest.mark.parametrize("prompts", [[], "a cat"])
def test_no_prompts_or_a_bare_text_are_refused(backbone: Any, prompts: Any) -> None:
    with pytest.raises(InputError, match="expected a sequence of texts"):
        backbone.encode(prompts)


def test_the_projections_are_the_layers_as_wide_as_the_text(backbone: Any) -> None:
    width = backbone.encode(["a"]).states.shape[-1]
    weights = tiny.text_weights(backbone)
    assert weights
    assert {weight.shape[1] for weight in weights.values()} == {width}


def test_parameters_are_those_of_denoiser_and_text_encoders_by_full_name(backbone: Any) -> None:
    everything = backbone.parameters(lambda _: True)
    assert {name.partition(".")[0] for name in everything} >= {"unet", "text_encoder"}
    for name, parameter in everything.items():
        component, _, rest = name.partition(".")
        assert backbone.component(component).get_parameter(rest) is parameter
    assert not backbone.parameters(lambda _: False)
    with pytest.raises(UnknownNameError, match=r"Unknown component 'unett'. Did you mean 'unet'\?"):
        backbone.component("unett")


def test_predictions_have_gradients_and_take_one_timestep_or_one_each(backbone: Any) -> None:
    states = backbone.encode(["a cat", "a dog"])
    each = backbone.predict(latents(2), torch.tensor([5, 5]), states)
    assert each.requires_grad
    assert torch.equal(each, backbone.predict(latents(2), torch.tensor(5), states))
    noise = backbone.schedule.noise_of(each, latents(2), torch.tensor(5))
    assert noise.shape == each.shape
    torch.testing.assert_close(noise, backbone.schedule.noise_of(each, latents(2), torch.tensor([5, 5])))


def test_the_schedule_falls_from_signal_to_noise(backbone: Any) -> None:
    assert isinstance(backbone.schedule, NoiseSchedule)
    clean, noise = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    levels = [backbone.schedule.noised(clean, noise, t[None]).mean() for t in backbone.schedule.timesteps(20)]
    assert all(0 <= level <= 1 for level in levels)
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_fingerprint_is_that_of_the_weights_in_any_layout_or_precision(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    own = backbone_of(pipe).fingerprint()
    assert backbone_of(tiny.FAMILIES[family]()).fingerprint() == own
    assert backbone_of(tiny.FAMILIES[family](seed=1)).fingerprint() != own
    pipe.unet.to(memory_format=torch.channels_last)
    assert backbone_of(pipe).fingerprint() == own
    assert backbone_of(pipe.to(torch.float16)).fingerprint() == own
    for prefix in ("unet", "text_encoder"):
        changed = backbone_of(tiny.FAMILIES[family]())
        parameter = next(iter(changed.parameters(lambda name, prefix=prefix: name.startswith(prefix)).values()))
        parameter.data = parameter.data + 0.1
        assert changed.fingerprint() != own


def test_wrapping_and_asking_leave_the_model_as_it_was(backbone: Any) -> None:
    before = {name: value.clone() for name, value in backbone.parameters(lambda _: True).items()}
    backbone.encode(["a cat"])
    backbone.fingerprint()
    backbone.unconditional()
    after = backbone.parameters(lambda _: True)
    assert all(torch.equal(before[name], after[name]) for name in before)
