"""What every backbone owes the methods."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from erasure import UCE, erase
from erasure.backbones import backbone_of
from erasure.backbones.attention import AttentionCapture, cross_attention_layers, layer_pixels
from erasure.backbones.base import Backbone
from erasure.backbones.schedule import NoiseSchedule
from erasure.errors import InputError, UnknownNameError
from erasure.sampling import SamplingSettings, noise, sample, scheduled_prediction, trajectory_latents
from tests import tiny


@pytest.fixture(scope="module", params=sorted(tiny.EVERY))
def backbone(request: pytest.FixtureRequest) -> Any:
    return backbone_of(tiny.EVERY[request.param]())


@pytest.fixture(scope="module", params=sorted(tiny.JOINT))
def joint(request: pytest.FixtureRequest) -> Any:
    return backbone_of(tiny.JOINT[request.param]())


def latents(n: int) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_is_a_backbone(backbone: Any) -> None:
    assert isinstance(backbone, Backbone)
    assert (backbone.device, backbone.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("family", tiny.EVERY)
def test_its_type_is_the_one_that_diffusers_computes_in(family: str) -> None:
    backbone = backbone_of(tiny.EVERY[family]())
    backbone.denoiser.to(torch.float16)
    assert backbone.dtype == torch.float16
    backbone.denoiser.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.bfloat16)
    assert next(backbone.denoiser.parameters()).dtype != torch.bfloat16
    assert backbone.dtype == torch.bfloat16


def test_a_prompt_reads_the_same_in_any_company(backbone: Any) -> None:
    prompts = ["a cat", "a dog", "", "a cat"]
    together = backbone.encode(prompts)
    assert together.prompts == tuple(prompts)
    for row, prompt in enumerate(prompts):
        alone = backbone.encode([prompt])
        torch.testing.assert_close(together.states[row], alone.states[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(together.ids[row], alone.ids[0])
    assert not together.states.requires_grad


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_trailing_states_the_others_are_the_same_and_padding_is_not_read(family: str) -> None:
    backbone = backbone_of(tiny.FAMILIES[family]())
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
    assert {name.partition(".")[0] for name in everything} >= {backbone.denoiser_name, "text_encoder"}
    for name, parameter in everything.items():
        component, _, rest = name.partition(".")
        assert backbone.component(component).get_parameter(rest) is parameter
    assert not backbone.parameters(lambda _: False)
    name = backbone.denoiser_name
    with pytest.raises(UnknownNameError, match=rf"Unknown component '{name}t'. Did you mean '{name}'\?"):
        backbone.component(f"{name}t")


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


@pytest.mark.parametrize("family", tiny.EVERY)
def test_the_fingerprint_is_that_of_the_weights_in_any_layout_or_precision(family: str) -> None:
    pipe = tiny.EVERY[family]()
    own_backbone = backbone_of(pipe)
    own = own_backbone.fingerprint()
    assert backbone_of(tiny.EVERY[family]()).fingerprint() == own
    assert backbone_of(tiny.EVERY[family](seed=1)).fingerprint() != own
    own_backbone.denoiser.to(memory_format=torch.channels_last)
    assert backbone_of(pipe).fingerprint() == own
    assert backbone_of(pipe.to(torch.float16)).fingerprint() == own
    for prefix in (own_backbone.denoiser_name, "text_encoder"):
        changed = backbone_of(tiny.EVERY[family]())
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


def test_the_call_of_the_pipeline_follows_the_schedule(joint: Any) -> None:
    prompts, seeds, scale = ["a cat", "a dog"], [0, 1], 3.0
    sampled = sample(joint.pipe, prompts, seeds, SamplingSettings(steps=3, guidance_scale=scale), output="latents")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    conditioning, unconditional = joint.encode(prompts), joint.unconditional()
    timesteps = joint.schedule.timesteps(3)
    with torch.no_grad():
        start = noise(generators, joint.latent_shape())
        found = trajectory_latents(joint, start, conditioning, unconditional, steps=3, guidance_scale=scale, stops=[2])[
            2
        ]
        free, bound = (
            scheduled_prediction(joint, found, timesteps[2], read) for read in (unconditional.expand(2), conditioning)
        )
    end = joint.schedule.step(free + scale * (bound - free), found, timesteps[2], torch.tensor(0.0))
    torch.testing.assert_close(end, sampled, rtol=1e-4, atol=1e-5)


def test_a_map_of_the_states_is_an_edit_of_their_readers(joint: Any) -> None:
    conditioning = joint.encode(["a cat", "a dog"])
    width = conditioning.states.shape[-1]
    mapped = torch.eye(width) + 0.1 * torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = joint.predict(
            latents(2), torch.tensor(500), conditioning.with_states(conditioning.states @ mapped.T)
        )
        for weight in tiny.text_weights(joint).values():
            weight.copy_(weight @ mapped)
        edited = joint.predict(latents(2), torch.tensor(500), conditioning)
        for weight in tiny.text_weights(joint).values():
            weight.copy_(weight @ torch.linalg.inv(mapped))
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-4)


def test_declared_readers_are_the_layers_whose_input_depends_on_the_text_alone(joint: Any) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    prefix = f"{joint.denoiser_name}."
    layers = {name: module for name, module in joint.denoiser.named_modules() if isinstance(module, torch.nn.Linear)}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            keep = lambda module, args, name=name: seen.setdefault(name, []).append(args[0].detach())  # noqa: E731
            hooks.callback(layer.register_forward_pre_hook(keep).remove)
        for seed, timestep, prompt in ((0, 500, "a cat"), (1, 20, "a cat"), (0, 500, "a dog")):
            z = torch.randn(1, *joint.latent_shape(), generator=torch.Generator().manual_seed(seed))
            joint.predict(z, torch.tensor(timestep), joint.encode([prompt]))
    of_text = {n for n, (x, other, text) in seen.items() if torch.equal(x, other) and not torch.equal(x, text)}
    declared = {site.module.removeprefix(prefix) for site in joint.sites().values() if site.reads}
    # Behind a first reader there may be more layers of the text alone.
    assert declared <= of_text
    assert {name for name in of_text - declared if not name.startswith("time_text_embed.text_embedder")} == set()


def test_states_move_with_a_name_as_the_encoder_is_declared_to_read(joint: Any) -> None:
    cat, dog = (joint.encode([f"a photo of a {name} there"]).streams["text"].parts()[-1] for name in ("cat", "dog"))
    moved = (cat[1] != dog[1]).any(-1)[0]
    start = cat[0].offsets[0]
    first = next(i for i, (begin, end) in enumerate(start) if end > len("a photo of a"))
    assert bool(moved[:first].any()) != cat[0].causal


def test_attention_is_captured_without_changing_the_output(joint: Any) -> None:
    conditioning = joint.encode(["a cat", "a dog"])
    tokens = range(conditioning.states.shape[1])
    plain = joint.predict(latents(2), torch.tensor(500), conditioning)
    found = {}
    for implementation in ("one-hot", "softmax"):
        capture = AttentionCapture(backbone=joint, tokens=tokens, implementation=implementation)
        with capture:
            assert torch.equal(joint.predict(latents(2), torch.tensor(500), conditioning), plain)
        found[implementation] = capture.maps
    assert list(found["one-hot"]) == list(cross_attention_layers(joint))
    for name, maps in found["one-hot"].items():
        torch.testing.assert_close(maps, found["softmax"][name], rtol=1e-4, atol=1e-6)
        assert (maps >= 0).all()
        assert (maps.sum(-1) < 1).all()  # the image's own tokens have the rest
        assert maps.shape[2] == layer_pixels(joint)[name]


def test_checkpointing_gives_the_plain_output_and_gradients(joint: Any) -> None:
    states, given = joint.encode(["a cat"]), latents(1)
    weight = next(iter(tiny.text_weights(joint).values()))
    plain = joint.predict(given, torch.tensor(5), states)
    plain.sum().backward()
    gradient, weight.grad = weight.grad, None
    joint.denoiser.enable_gradient_checkpointing()
    try:
        joint.denoiser.train()
        saved = joint.predict(given, torch.tensor(5), states)
        saved.sum().backward()
    finally:
        joint.denoiser.eval()
        joint.denoiser.disable_gradient_checkpointing()
    assert torch.equal(plain, saved)
    assert torch.equal(gradient, weight.grad)
    joint.denoiser.zero_grad()


def test_a_lora_of_the_readers_loads_as_the_edit_itself(joint: Any, tmp_path: Any) -> None:
    pipe, states, given = joint.pipe, joint.encode(["a cat"]), latents(1)
    edit = erase(pipe, "cat", eraser=UCE(), preserve=["dog"])
    with edit.applied_to(pipe):
        edited = joint.predict(given, torch.tensor(5), states)
    save_file(edit.as_lora(pipe, rank=32).state_dict, tmp_path / "pytorch_lora_weights.safetensors")
    plain = joint.predict(given, torch.tensor(5), states)
    pipe.load_lora_weights(tmp_path)
    try:
        loaded = joint.predict(given, torch.tensor(5), states)
    finally:
        pipe.unload_lora_weights()
    torch.testing.assert_close(loaded, edited, rtol=1e-4, atol=1e-5)
    assert (edited - plain).abs().max() > 1e-3


def test_a_prompt_that_one_of_the_encoders_reads_whole_is_not_cut() -> None:
    pipe = tiny.sd3()
    pipe.tokenizer_3.model_max_length = 200
    read = backbone_of(pipe).encode(["xy" * 10, "xy" * 45, "xy" * 130])  # CLIP reads 75 letters
    assert [read.is_cut(row) for row in range(3)] == [False, False, True]
