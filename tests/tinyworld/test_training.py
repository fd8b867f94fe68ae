"""Every stage of the training runs, resumes and ends in a folder that diffusers loads."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from diffusers import StableDiffusionPipeline
from torch import nn

from erasure.errors import InputError
from erasure.tinyworld import models
from erasure.tinyworld.oracle import Oracle
from erasure.tinyworld.training import autoencoder, denoising, judge, oracle
from erasure.tinyworld.training.autoencoder import normalise_latents
from erasure.tinyworld.training.batches import token_ids
from erasure.tinyworld.training.command import main
from erasure.tinyworld.training.denoising import WORDS_ALONE, mixed_states, words_kept
from erasure.tinyworld.training.loop import Loop
from erasure.tinyworld.training.recipe import Recipe, training_set
from erasure.tinyworld.training.run import train
from erasure.tinyworld.training.start import start_from


@pytest.fixture(scope="module", autouse=True)
def brief() -> Iterator[None]:
    """Small sheets sampled in one step, and latents normalised over two batches: no number is what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "SHEET_STEPS", 1)
        patch.setattr(denoising, "OBJECTS", ("cat", "dog"))
        patch.setattr(autoencoder, "NORMALISED", 2)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder after a few steps of every stage."""
    small = pytest.MonkeyPatch()
    small.setattr(oracle, "ORACLE_PICTURES", 64)
    small.setattr(judge, "ORACLE_PICTURES", 64)
    small.setattr(oracle, "ROUND_TRIPS", 64)
    small.setattr(oracle, "CALIBRATED", 200)
    small.setattr(autoencoder, "ENCODED", 64)
    recipe = Recipe(out=tmp_path_factory.mktemp("world"), minutes=0.02, pictures=64, without=("gun",))
    try:
        return train(recipe)
    finally:
        small.undo()


def test_the_folder_loads_with_plain_diffusers(trained: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(trained)
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a cat", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert out.shape == (1, 64, 64, 3)
    assert np.isfinite(out).all()


def test_oracle_and_judge_come_with_it(trained: Path) -> None:
    from erasure.tinyworld.judge import WorldClip

    reading = Oracle.load(trained / "oracle").read(np.zeros((3, 64, 64, 3), dtype=np.uint8))
    assert reading.things.shape == (3, 27)
    assert reading.sees("cat").shape == (3,)
    judge = WorldClip.load(trained / "judge", models.CLIPTokenizer.from_pretrained(trained / "tokenizer"))
    texts = judge.text_features(["a cat", "a dog"])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert not torch.equal(texts[0], texts[1])


def test_saved_weights_are_float16_within_the_budget(trained: Path) -> None:
    sizes = sum(p.stat().st_size for p in trained.rglob("*") if p.is_file())
    assert sizes <= 16 * 2**20
    assert not [p for p in trained.rglob("*.bin")]


def test_latents_are_normalised(trained: Path) -> None:
    latents = torch.load(trained.parent / "state" / "latents.pt", weights_only=True).float()
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.25, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.25, rtol=0)


def _loop(out: Path, minutes: float, seen: list[float]) -> Loop:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss(rng: np.random.Generator, step: int) -> torch.Tensor:
        x = torch.from_numpy(rng.standard_normal((4, 3)).astype(np.float32))
        seen.append(float(x.sum()))
        return module(x).square().mean()

    recipe = Recipe(out=out, minutes=minutes, stages=("toy",))
    return Loop(recipe=recipe, stage="toy", modules={"m": module}, loss=loss, minutes=minutes, lr=1e-2, average=0.9)


def test_a_loop_goes_on_where_it_stopped_with_the_draws_of_an_unbroken_one(tmp_path: Path) -> None:
    first: list[float] = []
    second: list[float] = []
    whole: list[float] = []
    _loop(tmp_path / "a", 0.002, first).run()
    _loop(tmp_path / "a", 0.01, second).run()
    _loop(tmp_path / "b", 0.01, whole).run()
    both = first + second
    shared = min(len(both), len(whole))
    assert len(first) > 0
    assert len(second) > 0
    assert both[:shared] == whole[:shared]


def test_a_finished_loop_does_not_train_again(tmp_path: Path) -> None:
    again: list[float] = []
    _loop(tmp_path, 0.002, []).run()
    _loop(tmp_path, 0.002, again).run()
    assert again == []


def test_text_is_pooled_at_the_first_end_of_text(trained: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(trained)
    ids = pipe.tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    out = pipe.text_encoder(ids)
    first = int((ids[0] == pipe.tokenizer.eos_token_id).int().argmax())
    torch.testing.assert_close(out.pooler_output[0], out.last_hidden_state[0, first])


def test_any_text_can_be_encoded(trained: Path) -> None:
    tokenizer = models.CLIPTokenizer.from_pretrained(trained / "tokenizer")
    assert len(tokenizer) <= 1024
    for text in ("a cat", "ünïcödé", "猫", "🚀 12"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.replace(
            " ", ""
        )


def test_exchanged_states_leave_the_other_side_as_it_was(trained: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(trained)
    eos = models.token_id(pipe.tokenizer.eos_token_id)
    texts = ["a photo of a cat"] * 4
    ids = token_ids(pipe.tokenizer, texts, "cpu")
    with torch.no_grad():
        states, empty, neutral = (
            pipe.text_encoder(token_ids(pipe.tokenizer, t, "cpu")).last_hidden_state
            for t in (texts, [""], ["a picture of something there"])
        )
    fate = torch.tensor([0.1, WORDS_ALONE + 0.05, 0.7, 0.95])
    mixed = mixed_states(states, ids, empty, neutral, eos, fate)
    end = int((ids[0] == eos).int().argmax())
    torch.testing.assert_close(mixed[0, :end], states[0, :end])
    torch.testing.assert_close(mixed[0, end:], empty[0, end:])
    torch.testing.assert_close(mixed[1, 1:end], neutral[0, 1:end])
    torch.testing.assert_close(mixed[1, end:], states[1, end:])
    torch.testing.assert_close(mixed[2], states[2])
    torch.testing.assert_close(mixed[3], empty[0])
    assert words_kept(fate).tolist() == [True, False, True, False]


def test_a_training_starts_from_a_finished_model(trained: Path, tmp_path: Path) -> None:
    recipe = Recipe(out=tmp_path, minutes=0.02, pictures=64, stages=("unet",), start_from=trained)
    start_from(recipe)
    state = torch.load(tmp_path / "state" / "unet.pt", weights_only=True)
    weight = StableDiffusionPipeline.from_pretrained(trained).unet.conv_in.weight
    torch.testing.assert_close(state["modules"]["unet"]["conv_in.weight"], weight.float())
    assert state["step"] > 0
    with pytest.raises(InputError, match="with a recipe"):
        start_from(Recipe(out=tmp_path, minutes=1.0, start_from=tmp_path))
    with pytest.raises(InputError, match="without clip"):
        start_from(Recipe(out=tmp_path / "other", minutes=1.0, start_from=trained))


def test_a_stage_starts_anew_beside_the_finished_ones(trained: Path, tmp_path: Path) -> None:
    start_from(Recipe(out=tmp_path, minutes=0.02, stages=("unet",), start_from=trained, anew=("unet",)))
    assert not (tmp_path / "state" / "unet.pt").exists()
    assert (tmp_path / "state" / "vae.pt").exists()
    with pytest.raises(typer.BadParameter, match="anew: expected --start-from"):
        main(minutes=1.0, out=tmp_path, anew="unet")


def test_normalised_latents_are_left_as_they_are(trained: Path, tmp_path: Path) -> None:
    recipe = Recipe(out=tmp_path, minutes=1.0, pictures=64)
    vae = StableDiffusionPipeline.from_pretrained(trained).vae
    drawn = training_set(recipe)
    normalise_latents(vae, drawn, recipe)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    normalise_latents(vae, drawn, recipe)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    with torch.no_grad():
        vae.quant_conv.weight *= 3
    normalise_latents(vae, drawn, recipe)
    assert not torch.equal(before["quant_conv.weight"], vae.quant_conv.weight)


def test_steps_end_the_denoiser_whatever_the_minutes(trained: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        out=tmp_path, minutes=0.001, steps=3, grounding=False, pictures=64, batch_size=4, stages=("unet",),
        start_from=trained, anew=("unet",),
    )  # fmt: skip
    for steps in (3, 5):
        train(replace(recipe, steps=steps))
        assert torch.load(tmp_path / "state" / "unet.pt", weights_only=True)["step"] == steps
        assert (tmp_path / "samples" / f"unet-{steps:06d}.png").exists()
