"""The transformer of the world: its flow matching, its training, its folder."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from diffusers import FluxPipeline
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from erasure import UCE, Ledger, erase, load_model, tinyworld
from erasure.backbones import backbone_of
from erasure.backbones.conditioning import POOLED, TEXT, Conditioning, Stream
from erasure.backbones.flux import Flux
from erasure.errors import InputError
from erasure.loading import load_stored
from erasure.pipelines.export.formats import Export, write_export
from erasure.profile import profile_of
from erasure.sampling import SamplingSettings, sample
from erasure.tinyworld import models
from erasure.tinyworld.data import drawings
from erasure.tinyworld.training import autoencoder, denoising, loop
from erasure.tinyworld.training.command import main
from erasure.tinyworld.training.denoising import NO_PROMPT, CaptionedBatch, TextParts
from erasure.tinyworld.training.loop import Float32Attention
from erasure.tinyworld.training.recipe import Recipe
from erasure.tinyworld.training.run import train
from erasure.tinyworld.training.transformer import (
    SENTENCE_ALONE,
    TOKENS_ALONE,
    FlowLoss,
    flow_loss,
    mixed_sentences,
    noise_levels,
    transformer_stage,
)
from erasure.tinyworld.world import Mix

small = partial(models.transformer, heads=2, head_dim=16, double_blocks=1, single_blocks=1)


@pytest.fixture(scope="module")
def parts() -> TextParts:
    pipe = tinyworld.load()
    text, vae = pipe.text_encoder.requires_grad_(False), pipe.vae.requires_grad_(False)
    return TextParts(tokenizer=pipe.tokenizer, text=text, vae=vae)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole transformer after one step without guns."""
    recipe = Recipe(
        out=tmp_path_factory.mktemp("flux"), stages=("transformer", "assemble"), start_from=tinyworld.MODEL,
        steps=1, batch_size=2, pictures=64, without=("gun",),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(denoising, "SHEET_STEPS", 1)
        quick.setattr(autoencoder, "normalise_latents", lambda *given: None)  # the shipped one's are normal
        return train(recipe)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    clean, noise = torch.randn(2, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return clean, noise


def nothing(n: int) -> Conditioning:
    streams = {TEXT: Stream(states=torch.zeros(n, 32, 128)), POOLED: Stream(states=torch.zeros(n, 1, 128))}
    return Conditioning(prompts=("",) * n, streams=streams)


def test_there_is_one_level_in_each_part_of_a_logit_normal() -> None:
    levels = noise_levels(np.random.default_rng(0), 64)
    assert levels.shape == (64,)
    places = torch.special.ndtr(torch.logit(levels)) * 64
    assert places.floor().tolist() == list(range(64))


class Exact(Flux):
    """FLUX with the velocity of a world of one image z in the place of its own.

    x = (1 - s) z + s e gives e - z = (x - z) / s.
    """

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return (latents - pair()[0][:1]) / (timestep / 1000)[:, None, None, None]


def test_the_loss_is_zero_for_the_velocity_that_leads_to_the_only_image(parts: TextParts) -> None:
    clean, noise = pair()
    levels, exact = torch.tensor([0.1, 0.4, 0.7, 1.0]), Exact(parts.pipeline(small()))
    assert flow_loss(exact, clean[:1].expand(4, -1, -1, -1), noise, levels, nothing(4)).item() < 1e-9
    elsewhere = clean[:1].expand(4, -1, -1, -1) + 1  # its velocity is less by 1 / s
    loss = flow_loss(exact, elsewhere, noise, levels, nothing(4))
    torch.testing.assert_close(loss, (1 / levels).square().mean())


def test_a_new_transformer_predicts_nothing_and_its_loss_is_the_power_of_the_velocity(parts: TextParts) -> None:
    clean, noise = pair()
    backbone = backbone_of(parts.pipeline(small()))
    loss = flow_loss(backbone, clean, noise, torch.full((4,), 0.3), nothing(4))
    torch.testing.assert_close(loss, (noise - clean).square().mean())


def test_a_batch_can_be_learned_by_heart(parts: TextParts) -> None:
    torch.manual_seed(0)
    net = small()
    backbone = backbone_of(parts.pipeline(net))
    clean, noise = pair()
    states, levels = backbone.encode(["a cat", "a dog", "a tree", "a car"]), torch.tensor([0.2, 0.4, 0.6, 0.8])
    optimizer = torch.optim.Adam(net.parameters(), lr=6e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = flow_loss(backbone, clean, noise, levels, states)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_the_sentence_vector_or_the_tokens_are_left_alone() -> None:
    fate = torch.tensor([0.5, 0.5, 0.5, 1 - NO_PROMPT / 2])
    roll = torch.tensor([TOKENS_ALONE / 2, 0.5, 1 - SENTENCE_ALONE / 2, 0.5])
    drawn = CaptionedBatch(
        rows=np.arange(4), captions=["a"] * 4, ids=torch.zeros(4, 3), latents=torch.zeros(4), fate=fate,
        states=torch.ones(4, 3, 2), pooled=torch.ones(4, 2),
    )  # fmt: skip
    empty = BaseModelOutputWithPooling(last_hidden_state=torch.zeros(1, 3, 2), pooler_output=torch.zeros(1, 2))
    read = mixed_sentences(drawn, empty, roll)
    assert read.pooled is not None
    assert read.pooled[:, 0].tolist() == [0, 1, 1, 0]
    assert read.states[:, 0, 0].tolist() == [1, 1, 0, 1]  # the batch has emptied the last one's states itself


def test_attention_is_float32_under_autocast_however_it_is_called() -> None:
    query = torch.randn(1, 2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        named = F.scaled_dot_product_attention(query=query.bfloat16(), key=query.bfloat16(), value=query.bfloat16())
        placed = F.scaled_dot_product_attention(query.bfloat16(), query.bfloat16(), query.bfloat16())
    assert named.dtype == torch.float32
    assert torch.equal(named, placed)


def _recipe(out: Path, **changes: Any) -> Recipe:
    recipe = Recipe(out=out, stages=("transformer",), steps=4, batch_size=2, pictures=32, lr=1e-3)
    return replace(recipe, **changes)


def test_an_interrupted_training_ends_in_the_same_bits(
    parts: TextParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "transformer", small)
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("erasure.tinyworld.training.denoising.write_samples", lambda *given: None)
    for name in ("whole", "broken"):
        (tmp_path / name / "state").mkdir(parents=True)
    whole = transformer_stage(_recipe(tmp_path / "whole"), parts)
    plain = FlowLoss.__call__

    def killed(self: FlowLoss, rng: np.random.Generator, step: int) -> torch.Tensor:
        if step == 2:
            raise KeyboardInterrupt
        return plain(self, rng, step)

    monkeypatch.setattr(FlowLoss, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        transformer_stage(_recipe(tmp_path / "broken"), parts)
    monkeypatch.setattr(FlowLoss, "__call__", plain)
    resumed = transformer_stage(_recipe(tmp_path / "broken"), parts)
    states = [
        torch.load(tmp_path / name / "state" / "transformer.pt", weights_only=True) for name in ("whole", "broken")
    ]
    assert [state["step"] for state in states] == [4, 4]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])
        assert torch.equal(states[0]["modules"]["transformer"][name], states[1]["modules"]["transformer"][name])
    assert any(not torch.equal(weight, small().state_dict()[name]) for name, weight in whole.state_dict().items())


def test_the_folder_loads_with_plain_diffusers_and_draws_alike(trained: Path) -> None:
    plain = FluxPipeline.from_pretrained(trained)
    assert plain.vae.config.shift_factor == 0
    plain.transformer.proj_out.weight.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    ours = tinyworld.load_flux(folder=trained)
    ours.transformer.load_state_dict(plain.transformer.state_dict())
    images = [sample(pipe, ["a cat"], [0], SamplingSettings(steps=2), output="uint8") for pipe in (plain, ours)]
    assert images[0].shape == (1, 64, 64, 3)
    assert np.array_equal(*images)


def test_what_is_shipped_is_float16_within_12_mib_and_needs_the_other_parts_from_the_world(
    trained: Path, tmp_path: Path
) -> None:
    files = [path for path in (trained / "transformer").iterdir()]
    assert 9 * 2**20 < sum(path.stat().st_size for path in files) <= 12 * 2**20
    (tmp_path / "transformer").mkdir()
    for path in files:
        (tmp_path / "transformer" / path.name).write_bytes(path.read_bytes())
    alone, whole = tinyworld.load_flux(folder=tmp_path), tinyworld.load_flux(folder=trained)
    assert backbone_of(alone).fingerprint() == backbone_of(whole).fingerprint()
    assert alone.name_or_path == str(tmp_path)
    assert (trained.parent / "samples" / "transformer-000001.png").exists()


def test_the_shipped_transformer_is_within_its_bound() -> None:
    assert sum(path.stat().st_size for path in tinyworld.FLUX.rglob("*") if path.is_file()) <= 12 * 2**20


def test_a_concept_is_left_out(trained: Path) -> None:
    assert (trained.parent / "data").exists()
    [stored] = (trained.parent / "data").iterdir()
    assert stored.name.startswith("drawings-64-0-gun-")
    drawn = drawings(64, 0, Mix(without=("gun",)))
    assert not any("gun" in picture.names for picture in drawn.pictures)
    settings = json.loads((trained / "recipe.json").read_text())["settings"]
    assert settings["without"] == ["gun"]
    assert "grounding" not in settings


def test_without_weights_one_line_says_how_to_train_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"expected a trained transformer in .*, got none.*--stages transformer,assemble"
    ):
        tinyworld.load_flux(folder=tmp_path)
    monkeypatch.setattr(tinyworld, "FLUX", tmp_path)
    with pytest.raises(InputError, match="tinyworld-flux: expected a trained transformer"):
        load_model("tinyworld-flux")


def test_it_works_by_its_name_once_its_weights_are_there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinyworld, "FLUX", trained)
    pipe = load_model("tinyworld-flux")
    monkeypatch.setattr(type(profile_of("tinyworld-flux")), "folder", trained)
    assert profile_of(pipe).name == "tinyworld-flux"
    assert backbone_of(pipe).latent_shape() == (4, 16, 16)


def test_the_command_refuses_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="expected one denoiser, got unet and transformer"):
        main(out=tmp_path, stages="unet,transformer", minutes=1.0)
    with pytest.raises(typer.BadParameter, match="minutes: expected a number > 0 for unet, got None"):
        main(out=tmp_path, stages="unet,assemble")
    with pytest.raises(typer.BadParameter, match="minutes: expected a number > 0 for transformer, got -1"):
        main(out=tmp_path, stages="transformer", minutes=-1.0)


def test_an_export_has_the_parts_that_the_folder_lacks(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "transformer", tmp_path / "flux" / "transformer")
    monkeypatch.setattr(tinyworld, "FLUX", tmp_path / "flux")
    monkeypatch.setattr(type(profile_of("tinyworld-flux")), "folder", tmp_path / "flux")
    pipe = load_model("tinyworld-flux")
    ledger = Ledger.create(tmp_path / "ledger", backbone_of(pipe).fingerprint(), "tinyworld-flux")
    ledger.add(erase(pipe, "cat", eraser=UCE(), preserve=["dog"]))
    write_export(ledger, pipe, Export(format="pipeline"), tmp_path / "out")
    written = backbone_of(load_model(str(tmp_path / "out")))
    assert written.latent_shape() == (4, 16, 16)
    with ledger.applied_to(pipe):
        for name, weight in backbone_of(pipe).parameters(lambda _: True).items():
            assert torch.equal(weight, written.parameters(lambda other, name=name: other == name)[name])
    with pytest.raises(InputError, match="expected one with all of its files, got 'tinyworld-flux'"):
        load_stored("tinyworld-flux")
