"""Weights that others publish, as edits of the model that they were made for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from erasure import UCE, Concept, Ledger, erase
from erasure.backbones import backbone_of
from erasure.edits.foreign_weights import import_edit, is_own
from erasure.errors import InputError
from tests import tiny

GONE = [Concept(target="cat")]


def published(path: Path, pipe, *, prefix: str = "", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Save an erasure as UCE's and ESD's own code does, and return the file's weights."""
    edit = erase(pipe, "cat", eraser=UCE(rows="last-subject"))
    parameters = backbone_of(pipe).parameters(edit.changes.__contains__)
    weights = {
        prefix + name.removeprefix("unet."): edit.edited(name, weight.data).to(dtype)
        for name, weight in parameters.items()
    }
    save_file(weights, path)
    return weights


@pytest.mark.parametrize("prefix", ["", "unet."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_applying_it_gives_the_file_s_weights_bit_for_bit(tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    pipe = tiny.sd1()
    weights = published(tmp_path / "uce.safetensors", pipe, prefix=prefix, dtype=dtype)
    edit = import_edit(tmp_path / "uce.safetensors", pipe, GONE)
    with edit.applied_to(pipe):
        found = pipe.unet.state_dict()
        for name, weight in weights.items():
            assert torch.equal(found[name.removeprefix("unet.")], weight.float())


def test_it_says_where_it_is_from_and_what_it_is(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    published(tmp_path / "uce.safetensors", pipe)
    metadata = import_edit(tmp_path / "uce.safetensors", pipe, GONE).metadata
    assert metadata.method == "imported"
    assert metadata.settings["file"] == "uce.safetensors"
    assert len(metadata.settings["sha256"]) == 64
    assert metadata.concepts == tuple(GONE)


def test_weights_that_are_as_before_are_no_change(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    weights = published(tmp_path / "a.safetensors", pipe)
    whole = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    save_file({**whole, **weights}, tmp_path / "whole.safetensors")
    assert import_edit(tmp_path / "whole.safetensors", pipe, GONE).changes.keys() == {
        f"unet.{name}" for name in weights
    }
    save_file(whole, tmp_path / "same.safetensors")
    with pytest.raises(InputError, match="expected weights that differ from the model's, got none"):
        import_edit(tmp_path / "same.safetensors", pipe, GONE)


def test_a_ledger_takes_and_verifies_it(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    published(tmp_path / "uce.safetensors", pipe)
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "model")
    entry = ledger.add(import_edit(tmp_path / "uce.safetensors", pipe, GONE))
    assert (entry.method, entry.solved, entry.seconds) == ("imported", False, None)
    assert Ledger.open(tmp_path / "ledger").verify(pipe) == []


def test_our_own_files_are_told_from_others(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    published(tmp_path / "uce.safetensors", pipe)
    erase(pipe, "cat", eraser=UCE(rows="last-subject")).save(tmp_path / "own.safetensors")
    assert not is_own(tmp_path / "uce.safetensors")
    assert is_own(tmp_path / "own.safetensors")


def test_another_model_s_weights_are_refused(tmp_path: Path) -> None:
    published(tmp_path / "uce.safetensors", tiny.sd1())
    with pytest.raises(InputError, match=r"expected '.*' of shape \(16, 64\), got \(16, 32\)"):
        import_edit(tmp_path / "uce.safetensors", tiny.sdxl(), GONE)
    save_file({"transformer.layer.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"expected names of the model's parameters, got 'transformer\.layer\.weight'"):
        import_edit(tmp_path / "other.safetensors", tiny.sd1(), GONE)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("sd1", "text_encoder.text_model."),
        ("sd1", "text_encoder."),
        ("sd1", "text_model."),
        ("sd1", "module._orig_mod.text_model."),
        ("sdxl", "text_encoder_2.text_model."),
        ("sdxl", "text_encoder_2."),
    ],
)
def test_other_names_of_a_text_encoder_s_parameters_are_read(tmp_path: Path, family: str, prefix: str) -> None:
    pipe = tiny.FAMILIES[family]()
    component = "text_encoder_2" if family == "sdxl" else "text_encoder"
    key = "encoder.layers.0.mlp.fc1.weight"
    name = next(
        name
        for name in backbone_of(pipe).parameters(lambda name: name.endswith(key))
        if name.startswith(f"{component}.")
    )
    weight = backbone_of(pipe).parameters(lambda other: other == name)[name].detach() + 1
    tensors = {f"{prefix}{key}": weight, f"{prefix}embeddings.position_ids": torch.arange(tiny.POSITIONS)[None]}
    save_file(tensors, tmp_path / "text.safetensors")
    edit = import_edit(tmp_path / "text.safetensors", pipe, GONE)
    assert list(edit.changes) == [name]
    with edit.applied_to(pipe):
        assert torch.equal(backbone_of(pipe).parameters(lambda other: other == name)[name], weight)


def test_a_transformer_s_parameters_need_no_prefix(tmp_path: Path) -> None:
    pipe = tiny.sd3()
    weight = pipe.transformer.context_embedder.weight.detach() + 1
    save_file({"context_embedder.weight": weight}, tmp_path / "sd3.safetensors")
    assert list(import_edit(tmp_path / "sd3.safetensors", pipe, GONE).changes) == [
        "transformer.context_embedder.weight"
    ]


def test_one_parameter_by_two_names_or_one_name_for_two_is_refused(tmp_path: Path) -> None:
    pipe, path = tiny.sdxl(), tmp_path / "two.safetensors"
    weight = pipe.unet.conv_in.weight.detach() + 1
    save_file({"conv_in.weight": weight, "unet.conv_in.weight": weight.clone()}, path)
    with pytest.raises(InputError, match=r"expected 'unet\.conv_in\.weight' once, got it as"):
        import_edit(path, pipe, GONE)
    save_file({"encoder.layers.0.mlp.fc1.weight": torch.ones(64, 32)}, path)
    with pytest.raises(InputError, match=r"'text_encoder\..*' or 'text_encoder_2\..*'\. Put the component before it"):
        import_edit(path, pipe, GONE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    pipe, path = tiny.sd1(), tmp_path / "nan.safetensors"
    weight = pipe.unet.conv_in.weight.detach().clone()
    weight[0, 0, 0, 0] = value
    save_file({"conv_in.weight": weight}, path)
    with pytest.raises(
        InputError, match=r"nan\.safetensors: expected finite weights, got inf or nan in 'conv_in.weight'"
    ):
        import_edit(path, pipe, GONE)
    save_file({"conv_in.weight": weight.to(torch.int32)}, path)
    with pytest.raises(InputError, match=r"expected real numbers in 'conv_in\.weight', got torch\.int32"):
        import_edit(path, pipe, GONE)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    torch.save({}, tmp_path / "esd.pt")
    with pytest.raises(InputError, match=r"expected a safetensors file, got .* A pickle .* is not opened"):
        is_own(tmp_path / "esd.pt")
    with pytest.raises(InputError, match="expected the path of a file"):
        import_edit(tmp_path / "nowhere.safetensors", pipe, GONE)
    published(tmp_path / "uce.safetensors", pipe)
    with pytest.raises(InputError, match="expected what was removed"):
        import_edit(tmp_path / "uce.safetensors", pipe, [])


def test_files_without_content_and_loras_are_named_with_the_remedy(tmp_path: Path) -> None:
    pipe, path = tiny.sd1(), tmp_path / "file.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n")
    with pytest.raises(InputError, match=r"got a Git LFS pointer. Fetch the content by `git lfs pull`"):
        is_own(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"got an empty file. Copy or download it again"):
        is_own(path)
    layer = next(name for name, _ in pipe.unet.named_parameters() if "attn2.to_k" in name).removesuffix(".weight")
    save_file({f"unet.{layer}.lora_A.weight": torch.ones(4, 8)}, path)
    with pytest.raises(InputError, match="Merge the LoRA into its base"):
        import_edit(path, pipe, GONE)
