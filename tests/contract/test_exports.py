"""Exports of transformers under the names of other programs: loaded back, run, and refused where a key is ignored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from erasure.backbones import backbone_of
from erasure.edits import weights_of
from erasure.errors import ExportError, InputError
from erasure.ledger import Ledger
from erasure.pipelines.export import reopened
from erasure.pipelines.export.formats import Export, base_file_of, write_export
from erasure.pipelines.export.kohya import kohya_tensors
from erasure.pipelines.export.loaded_back import check_loads
from tests import tiny, tiny_families
from tests.contract.test_low_memory import NAMES, fitted


def ledger_of(family: str, folder: Path) -> tuple[Any, Ledger]:
    """Return a tiny model with a ledger of a removal."""
    pipe = tiny_families.built(family) if family in tiny_families.BUILDERS else tiny.JOINT[family]()
    backbone = backbone_of(pipe)
    ledger = Ledger.open_or_create(folder / "ledger", pipe, "tiny")
    ledger.add(fitted(backbone))
    return backbone, ledger


@pytest.mark.parametrize("family", NAMES)
def test_names_of_other_programs_load_as_the_edit_or_are_refused(family: str, tmp_path: Path) -> None:
    backbone, ledger = ledger_of(family, tmp_path)
    folder = tmp_path / "kohya"
    folder.mkdir()
    if not backbone.lora_prefix:
        with pytest.raises(InputError, match=rf"^kohya: expected .* got {family}\. Use --format"):
            write_export(ledger, backbone.pipe, Export(format="kohya"), folder)
        return
    write_export(ledger, backbone.pipe, Export(format="kohya"), folder)  # loads it back, and runs it
    file = folder / "kohya_lora.safetensors"
    tensors = load_file(file)
    assert all(key.startswith(backbone.lora_prefix) for key in tensors)
    layer = sorted({key.rpartition(".lora_")[0] for key in tensors if ".lora_" in key})[0]
    for key in [key for key in tensors if key.startswith(layer)]:
        tensors[key.replace(backbone.lora_prefix, f"{backbone.lora_prefix}other_")] = tensors.pop(key)
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"^lora: expected .* to load what was written, got "):
        check_loads(backbone.pipe, file, weights_of(ledger.edit()).as_lora(backbone.pipe).state_dict)


def test_layers_that_the_loader_has_no_reading_for_are_named(tmp_path: Path) -> None:
    pipe = tiny.JOINT["flux"]()
    layers = dict(backbone_of(pipe).component("transformer").named_modules())
    factors = {}
    for name in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp"):
        height, width = layers[name].weight.shape
        factors[f"transformer.{name}.lora_A.weight"] = torch.ones(1, width)
        factors[f"transformer.{name}.lora_B.weight"] = torch.ones(height, 1)
    file = tmp_path / "kohya_lora.safetensors"
    save_file(kohya_tensors(factors, pipe), file)
    expected = (
        "^kohya: expected FluxPipeline to load what was written, got 1 of 2 layers that it cannot read, such as"
        " 'lora_transformer_single_transformer_blocks_0_proj_mlp'. Use --format lora or edit.$"
    )
    with pytest.raises(ExportError, match=expected):
        check_loads(pipe, file, factors, form="kohya")


@pytest.mark.parametrize("family", NAMES)
def test_a_pipeline_is_opened_again_and_run(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, _ = ledger_of(family, tmp_path)
    backbone.pipe.save_pretrained(tmp_path / "model")
    ledger = Ledger.create(tmp_path / "again", backbone.fingerprint(), str(tmp_path / "model"))
    ledger.add(fitted(backbone))
    (tmp_path / "out").mkdir()
    write_export(ledger, backbone.pipe, Export(), tmp_path / "out")
    denoiser = backbone.denoiser
    monkeypatch.setattr(reopened, "prediction", lambda *_: torch.full((2,), float(backbone.denoiser is denoiser)))
    (tmp_path / "other").mkdir()
    with pytest.raises(ExportError, match=r"^pipeline: expected .*, got another prediction than"):
        write_export(ledger, backbone.pipe, Export(), tmp_path / "other")
    assert backbone.denoiser is denoiser


@pytest.mark.parametrize("family", ["flux", "chroma", "qwen-image", "sd3"])
def test_a_single_file_is_patched_under_its_own_names(family: str, tmp_path: Path) -> None:
    backbone, ledger = ledger_of(family, tmp_path)
    original = tmp_path / "original.safetensors"
    spec = Export(format="single-file", base_file=str(original))
    (tmp_path / "out").mkdir()
    names = dict(backbone.original_names)
    if family == "sd3":
        assert not names
        with pytest.raises(InputError, match=r"^single-file: expected a family whose .* got sd3"):
            write_export(ledger, backbone.pipe, spec, tmp_path / "out")
        return
    weights = {
        f"transformer.{name}.weight": f"model.diffusion_model.{original}.weight" for name, original in names.items()
    }
    parameters = backbone.parameters(weights.__contains__)
    assert set(parameters) == set(ledger.edit().changes)
    tensors = {weights[name]: p.detach().to(torch.bfloat16) for name, p in parameters.items()}
    save_file({**tensors, "other": torch.arange(5)}, original)
    write_export(ledger, backbone.pipe, spec, tmp_path / "out")
    patched = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(patched.pop("other"), torch.arange(5))
    assert patched.keys() == tensors.keys()
    with ledger.applied_to(backbone.pipe):
        for name, parameter in backbone.parameters(weights.__contains__).items():
            assert not torch.equal(patched[weights[name]], tensors[weights[name]])
            torch.testing.assert_close(patched[weights[name]].float(), parameter, rtol=0.02, atol=0.02)
    key = next(iter(tensors))
    (tmp_path / "again").mkdir()
    for message, content in {
        f"got others in '{key}'": {**tensors, key: tensors[key] + 1},
        "got none. Give the file": {"other": torch.arange(5)},
        "expected unquantised weights": {**tensors, key: tensors[key].to(torch.int8)},
    }.items():
        save_file(content, original)
        with pytest.raises(InputError, match=message):
            write_export(ledger, backbone.pipe, spec, tmp_path / "again")
    with pytest.raises(InputError, match=r"^single-file: expected a file of the base, got none"):
        base_file_of(Export(format="single-file"))
    with pytest.raises(InputError, match=r"^base_file: expected the format single-file, got lora"):
        Export(format="lora", base_file=str(original))
