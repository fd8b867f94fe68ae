"""What is peculiar to a family: how it reads text, what it predicts, what it is told besides."""

from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline

from erasure.backbones import backbone_of, families
from erasure.errors import InputError
from erasure.loading import load_model
from tests import tiny

PROMPTS = ["a photo of a cat", "", "very " * 60]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_states_are_those_of_the_pipeline(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    states = backbone_of(pipe).encode(PROMPTS)
    with torch.no_grad():
        encoded = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    torch.testing.assert_close(states.states, encoded[0])
    if family == "sdxl":
        torch.testing.assert_close(states.pooled, encoded[2])
    else:
        assert states.pooled is None


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_unconditional_state_is_the_one_that_the_pipeline_samples_with(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    states = backbone_of(pipe).unconditional()
    with torch.no_grad():
        encoded = pipe.encode_prompt("a", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    torch.testing.assert_close(states.states, encoded[1])
    if family == "sdxl":
        assert states.pooled is not None
        torch.testing.assert_close(states.pooled, encoded[3])
        assert not states.states.any()


def test_a_model_whose_configuration_asks_for_a_mask_gets_one() -> None:
    pipe = tiny.sd1()
    plain = backbone_of(pipe).encode(["a cat"]).states
    pipe.text_encoder.config.use_attention_mask = True
    masked = backbone_of(pipe).encode(["a cat"]).states
    with torch.no_grad():
        expected = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
    torch.testing.assert_close(masked, expected)
    assert not torch.allclose(masked, plain)


def test_families_are_told_apart() -> None:
    assert [backbone_of(build()).family for build in tiny.FAMILIES.values()] == ["sd1", "sd2", "sdxl"]


def test_a_model_that_none_covers_is_refused_with_the_list_of_those_covered() -> None:
    pipe: Any = DDPMPipeline(unet=tiny.sd1().unet, scheduler=tiny.sd1().scheduler)
    with pytest.raises(InputError) as caught:
        backbone_of(pipe)
    assert all(words in str(caught.value) for words in ("Stable Diffusion 1.x", "2.x", "XL", "DDPMPipeline"))
    assert len(families()) >= 3


def test_velocity_becomes_the_noise_that_it_stands_for() -> None:
    backbone = backbone_of(tiny.sd2())
    start, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([10, 700])
    schedule = backbone.schedule
    latents, velocity = schedule.noised(start, noise, timestep), schedule.target(start, noise, timestep)
    torch.testing.assert_close(schedule.noise_of(velocity, latents, timestep), noise, rtol=1e-4, atol=1e-5)


def test_other_prediction_types_are_refused() -> None:
    pipe = tiny.sd1(prediction_type="sample")
    with pytest.raises(InputError, match="expected 'epsilon' or 'v_prediction', got 'sample'"):
        _ = backbone_of(pipe).schedule


def test_sdxl_is_told_sizes_and_sentence() -> None:
    pipe = tiny.sdxl()
    backbone = backbone_of(pipe)
    states = backbone.encode(["a cat", "a dog"])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[tiny.PIXELS, tiny.PIXELS, 0, 0, tiny.PIXELS, tiny.PIXELS]]).float().expand(2, -1)
    with torch.no_grad():
        found = backbone.predict(latents, torch.tensor(3), states)
        expected = pipe.unet(
            latents,
            torch.tensor([3, 3]),
            encoder_hidden_states=states.states,
            added_cond_kwargs={"text_embeds": states.pooled, "time_ids": sizes},
        ).sample
    assert torch.equal(found, expected)


def test_sizes_in_pixels_become_sizes_of_latents() -> None:
    backbone = backbone_of(tiny.sd1())
    assert backbone.latent_shape() == (4, 8, 8)
    assert backbone.latent_shape(height=32, width=8) == (4, 16, 4)
    with pytest.raises(InputError, match="height: expected a multiple of 2 pixels, got 7"):
        backbone.latent_shape(height=7)


def test_a_learned_token_of_several_vectors_is_read_as_the_pipeline_reads_it() -> None:
    pipe = tiny.sd1(vocabulary="clip")
    pipe.load_textual_inversion({"<mine>": torch.ones(2, tiny.WIDTH)}, token="<mine>")
    states = backbone_of(pipe).encode(["a photo of <mine>"])
    with torch.no_grad():
        expected = pipe.encode_prompt("a photo of <mine>", "cpu", 1, False)[0]
    torch.testing.assert_close(states.states, expected)
    # The largest id is now a learned token's; the end of text is still found.
    assert states.eot.item() == 6


def test_a_folder_saved_by_diffusers_loads_as_the_same_base(tmp_path: Any) -> None:
    pipe = tiny.sd1(vocabulary="clip")
    pipe.save_pretrained(tmp_path)
    for dtype in (None, torch.float16):
        loaded = load_model(str(tmp_path), dtype=dtype)
        assert backbone_of(loaded).fingerprint() == backbone_of(pipe).fingerprint()
    ids = backbone_of(load_model(str(tmp_path))).encode(["A photo of Van Gogh's cat, 猫"]).ids
    assert torch.equal(ids, backbone_of(pipe).encode(["A photo of Van Gogh's cat, 猫"]).ids)


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Any) -> None:
    broken = tmp_path / "broken"
    tiny.sd1().save_pretrained(broken)
    (broken / "unet" / "config.json").unlink()
    (tmp_path / "empty").mkdir()
    for name, message in (
        (str(tmp_path / "empty"), "expected a folder with a model_index.json"),
        (str(broken), "expected a complete diffusers model"),
        (str(tmp_path / "missing"), "expected 'tinyworld', a folder or a Hub id"),
        ("tinywrld", "expected 'tinyworld', a folder or a Hub id"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_model(name)
        assert "\n" not in str(caught.value)


def test_the_hub_out_of_reach_is_one_line() -> None:
    with pytest.raises(InputError, match="could not be loaded") as caught:
        load_model("nobody/nothing-at-all")
    assert "\n" not in str(caught.value)


def test_the_clip_vocabulary_of_the_tests_is_the_genuine_one() -> None:
    tokens = tiny.tokenizer("clip")
    # Ids of OpenAI's CLIP, as its own tokenizer gives them.
    assert tokens("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
