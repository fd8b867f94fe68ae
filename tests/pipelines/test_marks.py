"""What an export says of the model's prediction, as its readers look for it; and what it has no names for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from safetensors import safe_open

from erasure import UCE, Ledger, erase
from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.pipelines.export.formats import Export, write_export
from tests import tiny


def scheduled(pipe: Any, **config: Any) -> Any:
    """Return a pipeline whose scheduler has other settings."""
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **config)
    return pipe


def exported(pipe: Any, form: str, folder: Path) -> tuple[dict[str, str], set[str], tuple[str, ...], Path]:
    """Export an erasure of a pipeline; return header and names of the file's tensors, the notes, and the file."""
    pipe.save_pretrained(folder / "model")
    ledger = Ledger.create(folder / "ledger", backbone_of(pipe).fingerprint(), str(folder / "model"))
    ledger.add(erase(pipe, "cat", eraser=UCE(rows="last-subject")))
    (folder / "out").mkdir()
    export = Export(format=form)
    written = write_export(ledger, pipe, export, folder / "out")
    with safe_open(folder / "out" / export.file, framework="pt") as file:
        return file.metadata(), set(file.keys()), written.notes, folder / "out" / export.file


@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_checkpoint_of_xl_is_marked_by_the_tensors_that_readers_look_for(tmp_path: Path, zero_snr: bool) -> None:
    pipe = tiny.sdxl(second_width=48)
    scheduled(pipe, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr)
    header, names, notes, file = exported(pipe, "checkpoint", tmp_path)
    assert "v_pred" in names
    assert ("ztsnr" in names) is zero_snr
    assert header["modelspec.prediction_type"] == "v"
    assert notes == ()
    read = StableDiffusionXLPipeline.from_single_file(str(file), config=str(file.parent / "config"))
    assert read.scheduler.config["prediction_type"] == "v_prediction"
    assert torch.equal(read.unet.conv_in.weight, pipe.unet.conv_in.weight)


def test_a_model_that_predicts_noise_has_no_mark(tmp_path: Path) -> None:
    header, names, notes, _ = exported(tiny.sdxl(second_width=48), "checkpoint", tmp_path)
    assert not {"v_pred", "ztsnr"} & names
    assert header["modelspec.prediction_type"] == "epsilon"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert notes == ()


def test_where_there_is_no_mark_the_notes_say_how_to_set_it(tmp_path: Path) -> None:
    pipe = scheduled(tiny.sd2(), rescale_betas_zero_snr=True)
    _, names, notes, _ = exported(pipe, "checkpoint", tmp_path)
    assert not {"v_pred", "ztsnr"} & names
    assert "predicts v-prediction" in notes[0]
    assert "ComfyUI takes it for noise" in notes[0]
    assert "zero terminal SNR" in notes[1]


@pytest.mark.parametrize("form", ["lora", "kohya"])
@pytest.mark.parametrize(("prediction", "mark"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_headers_of_loras_say_the_prediction(tmp_path: Path, form: str, prediction: str, mark: str) -> None:
    pipe = scheduled(tiny.sdxl(second_width=48), prediction_type=prediction)
    header, *_ = exported(pipe, form, tmp_path)
    assert header["modelspec.prediction_type"] == mark
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    if form == "kohya":
        assert header["ss_base_model_version"] == "sdxl_base_v1-0"
        assert header["ss_v_parameterization"] == str(mark == "v")


def test_version_2_with_v_prediction_is_named_by_kohya_s_scripts(tmp_path: Path) -> None:
    header, *_ = exported(tiny.sd2(), "kohya", tmp_path)
    assert (header["ss_base_model_version"], header["ss_v2"]) == ("sd_v2_768_v", "True")
    assert header["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"


def test_a_lora_of_a_transformer_is_read_by_diffusers(tmp_path: Path) -> None:
    _, names, _, file = exported(tiny.sd3(), "lora", tmp_path)
    assert "transformer.context_embedder.lora_A.weight" in names
    read = StableDiffusion3Pipeline.from_pretrained(tmp_path / "model")
    read.load_lora_weights(str(file.parent))
    assert read.get_active_adapters()


@pytest.mark.parametrize(("form", "family"), [("checkpoint", "flux"), ("checkpoint", "sd3"), ("kohya", "sd3")])
def test_a_family_without_names_is_refused(tmp_path: Path, family: str, form: str) -> None:
    with pytest.raises(InputError, match=f"{form}: expected Stable Diffusion 1.x, 2.x or XL.*, got {family}"):
        exported(tiny.JOINT[family](), form, tmp_path)


def test_an_autoencoder_without_names_is_refused(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    pipe.vae = AutoencoderTiny(latent_channels=4, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **widths)
    with pytest.raises(InputError, match="checkpoint: expected an AutoencoderKL, got AutoencoderTiny"):
        exported(pipe, "checkpoint", tmp_path)
