"""Text states exchanged before a block: which calls, which places, and what is told."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.sampling import SamplingSettings
from erasure.tinyworld import models
from experiments import joint_states
from experiments.joint_states import EXCHANGED, blocks, exchanged_before, measured
from experiments.text_states import PARTS, places, sentences


@pytest.fixture
def pipe() -> Any:
    unet = tinyworld.load()
    torch.manual_seed(0)
    net = models.transformer(heads=2, head_dim=16, double_blocks=1, single_blocks=1)
    with torch.no_grad():
        for parameter in net.parameters():  # the start has zeros where text and image meet
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return models.assemble_flux(net, unet.text_encoder, unet.vae, unet.tokenizer)


def test_a_block_reads_the_other_sentence_where_it_is_said_and_nowhere_else(pipe: Any) -> None:
    backbone = backbone_of(pipe)
    states, safe, concepts = sentences(backbone, 1)
    given = states.with_states(states.states, safe.pooled)
    stack = blocks(backbone.denoiser)
    noise = torch.randn(len(given), *backbone.latent_shape())
    timestep = torch.tensor(500.0)
    read: list[Tensor] = []

    def keep(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        read.append(kwargs["encoder_hidden_states"])

    with torch.no_grad():
        plain = backbone.predict(noise, timestep, given)
        handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in stack]
        backbone.predict(noise, timestep, given)
        backbone.predict(noise, timestep, safe)
        before, other = read[1], read[3]  # of the last block
        for handle in handles:
            handle.remove()
        for part in EXCHANGED:
            where = places(given, concepts, PARTS[part])
            with exchanged_before(stack[-1], backbone.denoiser, given, safe, where):
                handle = stack[-1].register_forward_pre_hook(keep, with_kwargs=True)
                exchanged = backbone.predict(noise, timestep, given)
                handle.remove()
                seen = read[-1]
                unconditional = backbone.predict(noise, timestep, safe)
            assert torch.equal(seen[where], other[where]), part
            assert torch.equal(seen[~where], before[~where]), part
            assert not torch.allclose(exchanged, plain), part
            assert torch.equal(unconditional, backbone.predict(noise, timestep, safe)), part
        with exchanged_before(stack[0], backbone.denoiser, given, safe, torch.zeros_like(where)):
            assert torch.equal(backbone.predict(noise, timestep, given), plain)
        with exchanged_before(stack[0], backbone.denoiser, given, safe, torch.ones_like(where)):
            torch.testing.assert_close(
                backbone.predict(noise, timestep, given), backbone.predict(noise, timestep, safe)
            )


def test_each_part_is_measured_before_each_block(pipe: Any) -> None:
    rows = measured(pipe, 1, SamplingSettings(steps=1, guidance_scale=2.0), None)
    assert [(row["part"], row["block"]) for row in rows] == [
        ("nothing", None),
        ("the sentence vector alone", None),
        *((part, block) for part in EXCHANGED for block in range(2)),
    ]
    assert {row["concept"]["n"] for row in rows} == {rows[0]["safe"]["n"]}


def test_without_the_transformer_a_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinyworld, "FLUX", tmp_path)
    monkeypatch.setattr(tinyworld.load_flux, "__defaults__", ("cpu", None, tmp_path))
    monkeypatch.setattr(sys, "argv", ["joint_states", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^joint_states: tinyworld-flux: expected a trained transformer"):
        joint_states.main()
