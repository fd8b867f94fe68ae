"""Models that are not whole: one line with the file and the remedy, and never a weight or a word that is made up."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from erasure import ESD, Concept, Ledger, erase
from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.loading import load_model, load_stored
from tests import tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"
TEXT = "text_encoder/model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny model."""
    path = tmp_path_factory.mktemp("whole") / "model"
    tiny.sd1().save_pretrained(path)
    return path


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def refusals(folder: Path) -> list[str]:
    """Return the errors of a model that is loaded whole, and of one that stays in its files."""
    messages = []
    for load in (load_model, load_stored):
        with pytest.raises(InputError) as raised:
            backbone_of(load(str(folder))).fingerprint()
        assert "\n" not in str(raised.value)
        messages.append(str(raised.value))
    return messages


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))


def test_weights_under_other_names_are_not_made_up(model: Path) -> None:
    tensors = load_file(model / TEXT)
    save_file({f"text_encoder.text_model.{name}": tensor for name, tensor in tensors.items()}, model / TEXT)
    loaded, stored = refusals(model)
    assert "expected every weight of the text_encoder" in loaded
    assert "got none for 'embeddings.position_embedding.weight'" in loaded
    assert "it has 'text_encoder.text_model." in loaded
    assert "expected the parameter 'text_encoder.embeddings.position_embedding.weight'" in stored


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_single_missing_weight_is_named(model: Path, part: str) -> None:
    file = next((model / part).glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    with pytest.raises(InputError, match=f"every weight of the {part} in .* got none for '{name}'"):
        load_model(str(model))


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        (TEXT, POINTER, "got a Git LFS pointer. Fetch the content by `git lfs pull`"),
        (UNET, POINTER, "got a Git LFS pointer. Fetch the content by `git lfs pull`"),
        (TEXT, "", "got an empty file"),
        (TEXT, "something else", "expected a safetensors file, got something else"),
        ("tokenizer/tokenizer.json", POINTER, "got a Git LFS pointer"),
        ("tokenizer/tokenizer.json", "{", "expected a complete diffusers model"),
        ("scheduler/scheduler_config.json", "", "got an empty file"),
        ("model_index.json", POINTER, "got a Git LFS pointer"),
        ("model_index.json", "[]", "expected a complete diffusers model"),
        ("unet/config.json", POINTER, "got a Git LFS pointer"),
        ("text_encoder/config.json", "", "got an empty file"),
        ("unet/config.json", "[]", "expected a complete diffusers model"),
        ("text_encoder/config.json", "{", "expected a complete diffusers model"),
    ],
)
def test_a_file_without_its_content_is_named_with_the_remedy(
    model: Path, file: str, content: str, expected: str
) -> None:
    (model / file).write_text(content)
    for message in refusals(model):
        assert expected in message
        assert str((model / file).parent) in message


def test_a_missing_package_is_named(model: Path) -> None:
    if find_spec("scipy") is not None:
        pytest.skip("the package is installed")
    change(model / "model_index.json", lambda index: index.update(scheduler=["diffusers", "LMSDiscreteScheduler"]))
    for message in refusals(model):
        assert "expected the packages that" in message
        assert "scipy" in message


def test_weights_that_are_not_finite_are_named(model: Path) -> None:
    tensors = load_file(model / UNET)
    tensors["conv_in.bias"][3] = torch.nan
    save_file(tensors, model / UNET)
    with pytest.raises(InputError, match=r"expected finite weights, got inf or nan in 'unet\.conv_in\.bias'"):
        load_model(str(model))


def test_a_model_of_a_variant_alone_is_loaded_from_it(whole: Path, model: Path) -> None:
    for file in list(model.rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    expected = backbone_of(load_model(str(whole))).fingerprint()
    assert backbone_of(load_model(str(model))).fingerprint() == expected
    assert backbone_of(load_stored(str(model))).fingerprint() == expected


def test_main_files_come_before_those_of_a_variant(whole: Path, model: Path) -> None:
    tensors = {name: tensor + 1 for name, tensor in load_file(model / UNET).items()}
    save_file(tensors, model / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    expected = backbone_of(load_model(str(whole))).fingerprint()
    assert backbone_of(load_model(str(model))).fingerprint() == expected
    assert backbone_of(load_stored(str(model))).fingerprint() == expected


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda data: data.pop("model_max_length"), "without a model_max_length in its tokenizer_config.json"),
        (
            lambda data: data.update(model_max_length=300),
            "a model_max_length of 300 where the encoder has 77 positions",
        ),
        (
            lambda data: data.update(model_max_length="77"),
            "a model_max_length of '77' where the encoder has 77 positions",
        ),
        (lambda data: data.update(model_max_length=1), "a model_max_length of 1 where the encoder has 77 positions"),
    ],
)
def test_a_tokenizer_s_length_fits_the_encoder(
    model: Path, edit: Callable[[dict[str, Any]], object], expected: str
) -> None:
    change(model / "tokenizer" / "tokenizer_config.json", edit)
    assert all(f"got one {expected}" in message or f"got one with {expected}" in message for message in refusals(model))


def test_a_tokenizer_without_its_vocabulary_is_refused(model: Path) -> None:
    (model / "tokenizer" / "tokenizer.json").unlink()
    for message in refusals(model):
        assert (
            "expected a tokenizer that fits the text_encoder, got one of 2 tokens where the encoder has 514" in message
        )


def test_another_model_s_tokenizer_is_refused(model: Path) -> None:
    shutil.rmtree(model / "tokenizer")
    tiny.tokenizer("clip").save_pretrained(model / "tokenizer")
    assert all("of 49408 tokens where the encoder has 514" in message for message in refusals(model))


def test_erase_compares_the_tokenizer_too() -> None:
    pipe = tiny.sdxl()
    pipe.tokenizer_2 = tiny.tokenizer("clip")
    with pytest.raises(InputError, match="expected a tokenizer_2 that fits the text_encoder_2"):
        erase(pipe, "cat")


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_a_pipeline_of_another_task_is_refused_before_anything_is_recorded(model: Path, kind: str) -> None:
    change(model / "model_index.json", lambda index: index.update(_class_name=kind))
    for message in refusals(model):
        assert f"expected a pipeline that makes images of texts alone, got {kind}, whose call takes an image" in message


def test_the_remedy_for_a_pipeline_of_another_task_works(model: Path) -> None:
    expected = backbone_of(load_model(str(model))).fingerprint()
    change(model / "model_index.json", lambda index: index.update(_class_name="StableDiffusionImg2ImgPipeline"))
    (message, _) = refusals(model)
    (name,) = re.findall(r"write '(\w+)' as _class_name in its model_index.json", message)
    change(model / "model_index.json", lambda index: index.update(_class_name=name))
    assert backbone_of(load_model(str(model))).fingerprint() == expected


def test_a_denoiser_that_reads_more_is_one_line_to_a_fit(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    pipe.unet = tiny.unet(tiny.WIDTH, in_channels=9)
    ledger = Ledger.create(tmp_path / "ledger", backbone_of(pipe).fingerprint(), "model")
    with pytest.raises(InputError, match="a denoiser that reads latents alone, got one of 9 channels in and 4 out"):
        ledger.remove(pipe, ESD(**ESD.quick), [Concept(target="cat")])
    assert not Ledger.open(tmp_path / "ledger").entries


def test_loading_warns_of_nothing(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load_model(str(model))
        load_model("tinyworld")
    said = capfd.readouterr().err
    assert not [word for word in ("deprecated", "safety checker", "initialized", "Some weights") if word in said]


def test_a_denoiser_that_reads_more_than_latents_is_refused(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    pipe.unet = tiny.unet(tiny.WIDTH, in_channels=9)
    pipe.save_pretrained(tmp_path)
    assert all("9 channels in and 4 out, as for inpainting" in message for message in refusals(tmp_path))


def test_weights_in_integers_are_refused_without_their_scales(model: Path) -> None:
    tensors = load_file(model / UNET)
    name = next(name for name in tensors if "attn2.to_k" in name)
    save_file({**tensors, name: tensors[name].to(torch.int8)}, model / UNET)
    for message in refusals(model):
        assert f"expected weights as fractions in {str(model / UNET)!r}, got I8 in {name!r}" in message


@pytest.mark.parametrize("size", [None, "a", 0, -4, 16.5, [16], [16, 0], [16, 24, 3], True, 10**9])
def test_a_denoiser_without_a_size_to_sample_at_is_refused(model: Path, size: object) -> None:
    change(model / "unet" / "config.json", lambda config: config.update(sample_size=size))
    assert all("expected a sample_size of one or two whole numbers from 1" in message for message in refusals(model))


@pytest.mark.parametrize("scale", [None, "a", 0, -1])
def test_an_autoencoder_without_a_scale_is_refused(model: Path, scale: object) -> None:
    change(model / "vae" / "config.json", lambda config: config.update(scaling_factor=scale))
    assert all("expected a scaling_factor above 0" in message for message in refusals(model))


@pytest.mark.parametrize(
    ("file", "key", "number"),
    [
        ("vae/config.json", "layers_per_block", 2**31),
        ("unet/config.json", "layers_per_block", [10**30, 1]),
        ("text_encoder/config.json", "num_hidden_layers", 2**63),
        ("text_encoder/config.json", "vocab_size", 2**40),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 2**31),
    ],
)
def test_an_absurd_number_of_a_configuration_is_refused_before_anything_is_built(
    model: Path, file: str, key: str, number: object
) -> None:
    change(model / file, lambda config: config.update({key: number}))
    for message in refusals(model):
        assert f"expected a {key} of at most" in message
        assert file in message


@pytest.mark.parametrize(
    ("file", "key", "number"),
    [
        ("vae/config.json", "scaling_factor", float("nan")),
        ("unet/config.json", "norm_eps", float("nan")),
        ("unet/config.json", "freq_shift", float("inf")),
        ("scheduler/scheduler_config.json", "lambda_min_clipped", float("inf")),
    ],
)
def test_a_number_of_a_configuration_that_is_not_finite_is_refused(
    model: Path, file: str, key: str, number: float
) -> None:
    change(model / file, lambda config: config.update({key: number}))
    assert all(f"expected a finite {key}" in message and file in message for message in refusals(model))


def test_a_scheduler_that_clips_nothing_is_loaded(model: Path) -> None:
    file = model / "scheduler/scheduler_config.json"
    change(file, lambda config: config.update(lambda_min_clipped=float("-inf")))
    assert "-Infinity" in file.read_text()
    load_model(str(model))


@pytest.mark.parametrize("content", ["5", "null", '"x"'])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_configuration_without_keys_is_refused_and_looked_for_nowhere(
    model: Path, part: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", None)
    (model / part / "config.json").write_text(content)
    for message in refusals(model):
        assert f"expected a complete diffusers model in {str(model / part)!r}" in message


def test_an_encoder_that_looks_for_no_token_is_refused(model: Path) -> None:
    change(model / "text_encoder/config.json", lambda config: config.update(eos_token_id=None))
    assert all("where the encoder's is None" in message for message in refusals(model))


def test_a_family_refuses_a_model_in_files_as_it_refuses_one_in_memory(model: Path, tmp_path: Path) -> None:
    change(model / "model_index.json", lambda index: index.update(scheduler=["diffusers", "EDMEulerScheduler"]))
    assert all("expected one of discrete timesteps, got EDMEulerScheduler" in message for message in refusals(model))
    tiny.sd3().save_pretrained(tmp_path / "flow")
    EulerDiscreteScheduler().save_pretrained(tmp_path / "flow" / "scheduler")
    index = {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    change(tmp_path / "flow" / "model_index.json", lambda data: data.update(index))
    for message in refusals(tmp_path / "flow"):
        assert "expected one of flow matching, got EulerDiscreteScheduler" in message


@pytest.mark.parametrize(("key", "value"), [("beta_end", 5.0), ("prediction_type", "x0")])
def test_a_scheduler_without_noise_levels_is_refused(model: Path, key: str, value: object) -> None:
    change(model / "scheduler/scheduler_config.json", lambda config: config.update({key: value}))
    for message in refusals(model):
        assert "scheduler" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "RePaintScheduler"},
        {"timestep_spacing": "unknown"},
        {"num_train_timesteps": 1},
        {"beta_start": 0.0, "beta_end": 0.0},
    ],
    ids=str,
)
def test_a_scheduler_that_samples_in_no_steps_is_refused(model: Path, changes: dict[str, Any]) -> None:
    change(model / "scheduler/scheduler_config.json", lambda config: config.update(changes))
    kind = changes.get("_class_name", "DDIMScheduler")
    change(model / "model_index.json", lambda index: index.update(scheduler=["diffusers", kind]))
    for message in refusals(model):
        assert "expected a scheduler to sample by, got one that refuses: steps: expected" in message
        assert kind in message


def test_a_scheduler_that_takes_few_numbers_of_steps_is_loaded(model: Path) -> None:
    change(model / "scheduler/scheduler_config.json", lambda config: config.update(num_train_timesteps=10))
    load_model(str(model))


@pytest.mark.parametrize("pair", [[1.5, "UNet2DConditionModel"], [7, None], ["diffusers", None], [None, "x"]])
def test_an_index_of_other_values_than_names_is_refused(model: Path, pair: list[object]) -> None:
    change(model / "model_index.json", lambda index: index.update(unet=pair))
    for message in refusals(model):
        assert "expected library and class of 'unet'" in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("class", "expected every weight of the vae in .*, got none for 'decoder.layers.0.bias'"),
        ("missing", "expected every weight of the vae in .*, got none for 'decoder.conv_in.bias'"),
        ("shape", r"decoder\.conv_in\.bias.* (but got|got one of shape) .*\(?\[?3"),
        (
            "channels",
            "expected an autoencoder whose latents the denoiser reads, of 4 channels, got AutoencoderKL with 8",
        ),
    ],
)
def test_another_autoencoder_is_refused(model: Path, damage: str, message: str) -> None:
    tensors = load_file(model / VAE)
    if damage == "class":
        change(model / "model_index.json", lambda index: index.update(vae=["diffusers", "AutoencoderTiny"]))
    elif damage == "channels":
        config = AutoencoderKL.load_config(model / "vae")
        AutoencoderKL.from_config({**config, "latent_channels": 8}).save_pretrained(model / "vae")
    else:
        removed = tensors.pop("decoder.conv_in.bias")
        save_file(tensors | ({"decoder.conv_in.bias": removed[:3].clone()} if damage == "shape" else {}), model / VAE)
    assert all(re.search(message, line) for line in refusals(model))


def test_an_autoencoder_with_the_older_names_is_loaded(model: Path) -> None:
    older = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    renamed = load_file(model / VAE)
    for new, old in older:
        renamed = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): each for name, each in renamed.items()}
    save_file(renamed, model / VAE)
    assert load_model(str(model)).vae.decoder.mid_block.attentions[0].to_q.weight.isfinite().all()
    assert backbone_of(load_stored(str(model))).fingerprint() == backbone_of(load_model(str(model))).fingerprint()


def test_a_pipeline_class_that_does_not_go_with_the_unet_is_refused(model: Path, tmp_path: Path) -> None:
    change(model / "model_index.json", lambda index: index.update(_class_name="StableDiffusionXLPipeline"))
    for message in refusals(model):
        assert "expected a UNet with a sentence vector for StableDiffusionXLPipeline, got one without" in message
    tiny.sdxl().save_pretrained(tmp_path / "xl")
    change(tmp_path / "xl" / "model_index.json", lambda index: index.update(_class_name="StableDiffusionPipeline"))
    for message in refusals(tmp_path / "xl"):
        assert "expected a UNet without a sentence vector for StableDiffusionPipeline, got one with it" in message
