"""Each eraser, guidance, sampler and metric: in bfloat16 on the CPU, and on a GPU in each precision."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.backbones.attention import AttentionCapture
from erasure.cli.main import app
from erasure.concept import Concept
from erasure.edits import weights_of
from erasure.erasers import eraser_class, eraser_names, make_eraser
from erasure.errors import InputError, UnknownNameError
from erasure.eval.benchmarks.tinyworld import TinyWorld
from erasure.eval.protocols.evaluate import evaluate
from erasure.eval.protocols.sources import metrics_of
from erasure.eval.protocols.variants import reference_variants
from erasure.guidance import guidances
from erasure.loading import attend_by, load_model
from erasure.sampling import SamplingSettings, sample
from erasure.training.context import FitContext
from tests import tiny
from tests.pieces import guidance

CONCEPTS = [Concept(target="cat", anchor="dog", preserve=("bird",))]
PROMPTS, SEEDS = ["a cat and a dog", "a tree"], [0, 1]

gpu = pytest.mark.gpu
PLACES = [
    pytest.param("cpu", torch.bfloat16, id="cpu-bfloat16"),
    pytest.param("cuda", torch.float32, id="cuda-float32", marks=gpu),
    pytest.param("cuda", torch.float16, id="cuda-float16", marks=gpu),
    pytest.param("cuda", torch.bfloat16, id="cuda-bfloat16", marks=gpu),
]
families = pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
placed_families = pytest.mark.parametrize(
    ("family", "device", "dtype"),
    [
        pytest.param(family, *place.values, id=f"{family}-{place.id}", marks=place.marks)
        for family in sorted(tiny.FAMILIES)
        for place in PLACES
        if family == "sd1" or "cuda" in place.values  # the contracts hold the others to float32 here
    ],
)


def placed(family: str, device: str, dtype: torch.dtype) -> Any:
    return tiny.FAMILIES[family]().to(device, dtype)


def latents(pipe: Any) -> torch.Tensor:
    return sample(pipe, PROMPTS, SEEDS, SamplingSettings(steps=2, guidance_scale=4.0), output="latents").float()


@placed_families
@pytest.mark.parametrize("name", eraser_names())
def test_an_eraser_changes_the_weights_where_they_are_and_gives_them_back(
    name: str, family: str, device: str, dtype: torch.dtype
) -> None:
    pipe = placed(family, device, dtype)
    before, drawn = backbone_of(pipe).fingerprint(), latents(pipe)
    edit = make_eraser(name, **eraser_class(name).quick).fit(CONCEPTS, FitContext(backbone=backbone_of(pipe)))
    with edit.applied_to(pipe):
        changes = weights_of(edit).changes
        weights = backbone_of(pipe).parameters(lambda name: name in changes or not changes)
        assert {weight.device.type for weight in weights.values()} == {device}
        assert {weight.dtype for weight in weights.values()} == {dtype}
        assert all(torch.isfinite(weight).all() for weight in weights.values())
        assert torch.isfinite(latents(pipe)).all()
    assert backbone_of(pipe).fingerprint() == before
    assert torch.equal(latents(pipe), drawn)


@gpu
@families
def test_the_closed_form_is_the_same_on_both_devices(family: str) -> None:
    method = make_eraser("uce", **eraser_class("uce").quick)
    pipe = tiny.FAMILIES[family]()
    here = method.fit(CONCEPTS, FitContext(backbone=backbone_of(pipe)))
    there = method.fit(CONCEPTS, FitContext(backbone=backbone_of(pipe.to("cuda"))))
    pipe.to("cpu")
    weights = backbone_of(pipe).parameters(here.changes.__contains__)
    for name, weight in weights.items():
        torch.testing.assert_close(
            there.changes[name].of(weight.detach()), here.changes[name].of(weight.detach()), rtol=1e-3, atol=1e-4
        )


@placed_families
@pytest.mark.parametrize("name", sorted(guidances()))
def test_a_guidance_acts_in_this_precision(name: str, family: str, device: str, dtype: torch.dtype) -> None:
    pipe = placed(family, device, dtype)
    before = latents(pipe)
    kind: Any = guidances()[name]
    with guidance(kind, pipe).applied_to(pipe):
        guided = latents(pipe)
    assert torch.isfinite(guided).all()
    assert kind.every_prompt or torch.equal(guided[1], before[1])  # a prompt without the concept
    assert torch.equal(latents(pipe), before)


@placed_families
def test_pictures_are_made_and_alike_in_any_precision(family: str, device: str, dtype: torch.dtype) -> None:
    exact = sample(
        tiny.FAMILIES[family](), PROMPTS, SEEDS, SamplingSettings(steps=2, guidance_scale=4.0), output="uint8"
    )
    found = sample(
        placed(family, device, dtype), PROMPTS, SEEDS, SamplingSettings(steps=2, guidance_scale=4.0), output="uint8"
    )
    assert np.abs(found.astype(int) - exact.astype(int)).mean() < (2 if dtype == torch.float32 else 20)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_every_metric_of_the_tiny_world_is_computed(
    device: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path))
    benchmark = TinyWorld(removed=("cat",), total=20)
    rows = reference_variants(tinyworld.load(device=device, dtype=dtype), ("cat",))
    found = evaluate(rows, benchmark, metrics_of(benchmark, device), sampler=SamplingSettings(steps=2))
    for row in rows:
        scores = {name: score["value"] for name, score in found.as_json()["rows"][row.name].items() if score}
        assert {"efficacy", "clip_score", "caption_match", "oracle_distance"} <= scores.keys()
        assert np.isfinite(list(scores.values())).all()


@gpu
def test_maps_are_captured_under_xformers_and_pictures_are_alike() -> None:
    if importlib.util.find_spec("xformers") is None:
        pytest.skip("needs the extra xformers")
    pipe = placed("sd1", "cuda", torch.float16)

    def seen() -> tuple[torch.Tensor, torch.Tensor]:
        with AttentionCapture(backbone_of(pipe)) as capture:
            drawn = latents(pipe)
            return drawn, torch.cat([maps.float().flatten() for maps in capture.maps.values()])

    plain, maps = seen()
    attend_by(pipe, "xformers")
    drawn, same_maps = seen()
    torch.testing.assert_close(drawn, plain, rtol=0.1, atol=0.1)
    torch.testing.assert_close(same_maps, maps, rtol=0.1, atol=0.02)
    attend_by(pipe, "sdpa")
    assert torch.equal(latents(pipe), plain)


@gpu
@families
def test_a_model_is_offloaded_while_an_edit_is_in_force(family: str) -> None:
    pipe = tiny.FAMILIES[family]().to(torch.float16)
    edit = make_eraser("uce", **eraser_class("uce").quick).fit(CONCEPTS, FitContext(backbone=backbone_of(pipe)))
    with edit.applied_to(pipe.to("cuda")):
        whole = latents(pipe)
    pipe.to("cpu")
    with edit.applied_to(pipe):
        pipe.enable_model_cpu_offload()
        offloaded = latents(pipe)
    torch.testing.assert_close(offloaded, whole, rtol=0.3, atol=0.3)


def test_an_attention_that_does_not_work_here_is_a_line() -> None:
    with pytest.raises(InputError, match=r"^attention: expected an xformers that works on cpu in float32, got .+ Use"):
        load_model("tinyworld", attention="xformers")
    with pytest.raises(UnknownNameError, match="Unknown attention 'flash'"):
        load_model("tinyworld", attention="flash")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--attention", "xformers"), "attention: expected an xformers that works on cpu"),
        (("--attention", "flash"), "Unknown attention 'flash'"),
        (("--dtype", "int8"), "dtype: expected one of float32, float16, bfloat16, got 'int8'"),
        (("--offload",), "offload: expected a CUDA device, got 'cpu'"),
    ],
)
def test_what_this_machine_cannot_do_is_a_line(options: tuple[str, ...], told: str, tmp_path: Path) -> None:
    given = ["generate", "tinyworld", "--prompt", "a cat", "--out", str(tmp_path), "--device", "cpu", "--steps", "2"]
    shown = CliRunner().invoke(app, [*given, *options])
    assert shown.exit_code == 2
    assert told in " ".join(shown.stderr.split())
    assert not list(tmp_path.iterdir())


def test_pictures_are_made_in_another_precision_by_the_command(tmp_path: Path) -> None:
    given = ["generate", "tinyworld", "--prompt", "a cat", "--device", "cpu", "--steps", "2"]
    for dtype in ("float32", "bfloat16"):
        shown = CliRunner().invoke(app, [*given, "--out", str(tmp_path / dtype), "--dtype", dtype])
        assert shown.exit_code == 0, shown.stderr
    one, other = ((tmp_path / dtype / "a-cat-0.png").read_bytes() for dtype in ("float32", "bfloat16"))
    assert one != other
