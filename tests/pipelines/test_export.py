"""Each format, read by the program that it is for, in a process in which this package cannot be imported."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from safetensors import safe_open
from torch import Tensor

from erasure import UCE, Ledger, erase, tinyworld
from erasure.backbones import backbone_of
from erasure.edits import DenseChange, WeightEdit
from erasure.errors import BaseMismatchError, InputError, UnknownNameError
from erasure.io.tensor_files import data_size
from erasure.pipelines.export.folders import folder_of
from erasure.pipelines.export.formats import FORMATS, Export, already_written, write_export, write_record
from erasure.pipelines.export.kohya import kohya_tensors
from tests import tiny
from tests.pipelines.elsewhere import Elsewhere

PROMPT = "a cat and a dog"
READERS = """
import os
import sys

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

base, out, xl = sys.argv[1:]

def drawn(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    return pipe("a cat and a dog", num_inference_steps=2, output_type="latent",
                generator=torch.Generator().manual_seed(0), **arguments).images

found = {"pipeline": drawn(DiffusionPipeline.from_pretrained(f"{out}/pipeline"))}
if any("fp16" in name for name in os.listdir(f"{out}/pipeline/unet")):
    half = DiffusionPipeline.from_pretrained(f"{out}/pipeline", variant="fp16", dtype=torch.float16)
    found["fp16"] = dict(half.unet.state_dict())
kind = StableDiffusionXLPipeline if xl == "xl" else StableDiffusionPipeline
found["checkpoint"] = drawn(
    kind.from_single_file(f"{out}/checkpoint/checkpoint.safetensors", config=f"{out}/checkpoint/config")
)
for name in ("lora", "kohya"):
    pipe = DiffusionPipeline.from_pretrained(base)
    file = None if name == "lora" else "kohya_lora.safetensors"
    pipe.load_lora_weights(f"{out}/{name}", weight_name=file, adapter_name="erased")
    for weight in (0.0, 1.0):
        pipe.set_adapters("erased", weight)
        found[f"{name} {weight}"] = drawn(pipe)
guided = DiffusionPipeline.from_pretrained(
    f"{out}/guided", custom_pipeline=f"{out}/guided", trust_remote_code=True
)
found["guided"] = drawn(guided, concepts=["cat", "dog"])
found["guided, alone"] = drawn(DiffusionPipeline.from_pretrained(f"{out}/guided"))
torch.save(found, f"{out}/found.pt")
"""


def family(name: str) -> Any:
    """Return a tiny pipeline; of XL one whose encoders can be told apart in a single file, as the real ones can."""
    return tiny.sdxl(second_width=48) if name == "sdxl" else tiny.EVERY[name]()


def save_whole(name: str, folder: Path) -> None:
    """Save a tiny pipeline with shards, in float32 and as a variant in float16."""
    family(name).save_pretrained(folder, max_shard_size="100KB")
    # Saved apart: diffusers takes the shards of another variant for old ones, and configs name a precision.
    apart = folder.with_name("half")
    family(name).to(torch.float16).save_pretrained(apart, variant="fp16", max_shard_size="100KB")
    for path in apart.rglob("*.fp16*"):
        shutil.copyfile(path, folder / path.relative_to(apart))


def drawn(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, num_inference_steps=2, output_type="latent", generator=generator).images


def ledger_of(pipe: Any, folder: Path, model: Path) -> Ledger:
    """Return a ledger of a saved pipeline with a cat and a style removed."""
    ledger = Ledger.create(folder, backbone_of(pipe).fingerprint(), str(model))
    for target in ("cat", "Van Gogh"):
        ledger.add(erase(pipe, target, eraser=UCE(rows="last-subject"), preserve=["dog"]))
    return ledger


@dataclass(frozen=True, kw_only=True)
class World:
    """A saved model with shards and variants, a ledger of it, and what readers made of the exports."""

    model: Path
    out: Path
    ledger: Ledger
    pipe: Any
    original: Tensor
    erased: Tensor
    found: Mapping[str, Any]


# Those that have shards and variants; the tiny world has trained weights instead.
saved_whole = pytest.mark.parametrize("world", ["sd1", "sd2", "sdxl"], indirect=True)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl", "tinyworld"])
def world(request: pytest.FixtureRequest, elsewhere: Elsewhere, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp(request.param)
    out, name = root / "out", str(request.param)
    model = tinyworld.MODEL if name == "tinyworld" else root / "model"
    if name != "tinyworld":
        save_whole(name, model)
    pipe = tinyworld.load() if name == "tinyworld" else family(name)
    ledger = ledger_of(pipe, root / "ledger", model)
    exports = {kind: Export(format=kind) for kind in FORMATS if kind != "single-file"} | {
        "guided": Export(guidance="a-star")
    }
    for kind, export in exports.items():
        (out / kind).mkdir(parents=True)
        written = write_export(ledger, pipe, export, out / kind)
        unmarked = name == "sd2" and kind == "checkpoint"  # there is no mark for its prediction
        assert len(written.notes) == unmarked  # so few rows make a change of low rank
    elsewhere.run(READERS, str(model), str(out), "xl" if name == "sdxl" else "-")
    original = drawn(pipe)
    with ledger.applied_to(pipe):
        erased = drawn(pipe)
    assert (original - erased).abs().max() > 0.01  # else equal pictures would prove nothing
    return World(
        model=model,
        out=out,
        ledger=ledger,
        pipe=pipe,
        original=original,
        erased=erased,
        found=torch.load(out / "found.pt"),
    )


def test_a_pipeline_gives_the_same_pictures_bit_for_bit(world: World) -> None:
    assert torch.equal(world.found["pipeline"], world.erased)


@saved_whole
def test_a_variant_holds_what_was_computed_from_its_own_weights(world: World) -> None:
    half = DiffusionPipeline.from_pretrained(world.model, variant="fp16", dtype=torch.float16)
    with world.ledger.edit().applied_to(half, check=False):
        expected = half.unet.state_dict()
        assert expected.keys() == world.found["fp16"].keys()
        assert all(torch.equal(weight, world.found["fp16"][name]) for name, weight in expected.items())


@saved_whole
def test_a_pipeline_has_the_files_of_its_base(world: World) -> None:
    def names(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert names(world.out / "pipeline") == names(world.model)
    for name in ("index", "index.fp16"):
        [index] = (world.model / "unet").glob(f"*.{name}.json")
        assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1


@saved_whole
def test_a_list_of_shards_says_how_large_they_are(world: World) -> None:
    for index in (world.out / "pipeline" / "unet").glob("*.index*.json"):
        listed = json.loads(index.read_text())
        shards = {index.parent / name for name in listed["weight_map"].values()}
        assert listed["metadata"]["total_size"] == sum(map(data_size, shards))
    assert not list((world.out / "checkpoint" / "config").rglob("*.index*.json"))


def test_a_checkpoint_gives_the_same_pictures_bit_for_bit(world: World) -> None:
    assert torch.equal(world.found["checkpoint"], world.erased)


@pytest.mark.parametrize("form", ["lora", "kohya"])
def test_a_lora_is_the_original_at_0_and_the_erased_model_at_1(world: World, form: str) -> None:
    assert torch.equal(world.found[f"{form} 0.0"], world.original)
    torch.testing.assert_close(world.found[f"{form} 1.0"], world.erased, rtol=1e-4, atol=1e-4)


def test_an_edit_stands_alone_and_gives_the_same_pictures_bit_for_bit(world: World) -> None:
    with WeightEdit.load(world.out / "edit" / "edit.safetensors").applied_to(world.pipe):
        assert torch.equal(drawn(world.pipe), world.erased)


def test_a_guidance_beside_the_weights_is_used_where_it_is_asked_for(world: World) -> None:
    # Without it not a bit differs, so what does differ is the guidance's, however little so small a model is moved.
    assert torch.equal(world.found["guided, alone"], world.erased)
    assert (world.found["guided"] - world.erased).abs().max() > 1e-4


@saved_whole
def test_kohya_names_are_those_of_its_scripts(world: World) -> None:
    with safe_open(world.out / "kohya" / "kohya_lora.safetensors", framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    xl = backbone_of(world.pipe).family == "sdxl"
    layer = "input_blocks_1_1" if xl else "down_blocks_0_attentions_0"
    start = f"lora_unet_{layer}_transformer_blocks_0_attn2_to_k"
    assert {f"{start}.lora_down.weight", f"{start}.lora_up.weight", f"{start}.alpha"} <= names
    assert metadata["ss_base_model_version"].startswith("sdxl_") == xl


def test_kohya_names_for_text_encoders(tmp_path: Path) -> None:
    factor = torch.ones(1, 4)
    layer = "encoder.layers.0.self_attn.q_proj"
    for name, parts in (("sd1", {"text_encoder": "te"}), ("sdxl", {"text_encoder": "te1", "text_encoder_2": "te2"})):
        for part, prefix in parts.items():
            given = {f"{part}.{layer}.lora_A.weight": factor, f"{part}.{layer}.lora_B.weight": factor.T}
            found = kohya_tensors(given, family(name))
            assert f"lora_{prefix}_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in found
    given = {"text_encoder_2.text_projection.lora_A.weight": factor, "text_encoder_2.text_projection.lora_B.weight": 1}
    with pytest.raises(InputError, match="expected layers that such a file has names for"):
        kohya_tensors(given, family("sdxl"))


def test_layers_of_different_ranks_are_read_alike(tmp_path: Path) -> None:
    # diffusers reads one alpha for all layers.
    pipe = tiny.sd1()
    first, second = [site.module for site in backbone_of(pipe).sites(reads="text").values()][:2]
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for module, rank in ((first, 1), (second, 3)):
        factors[f"{module}.lora_A.weight"] = torch.randn(rank, tiny.WIDTH, generator=generator)
        factors[f"{module}.lora_B.weight"] = torch.randn(16, rank, generator=generator)
    kohya = kohya_tensors(factors, pipe)
    assert {float(value) for key, value in kohya.items() if key.endswith(".alpha")} == {3.0}
    pipe.load_lora_weights(dict(factors), adapter_name="erased")
    expected = drawn(pipe)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(kohya, adapter_name="again")
    torch.testing.assert_close(drawn(pipe), expected, rtol=1e-4, atol=1e-4)


def test_a_base_in_half_precision_is_exported_to_the_last_bit_in_float32(tmp_path: Path) -> None:
    tiny.sd1().to(torch.float16).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"the original weights")
    (tmp_path / "model" / "LICENSE.md").write_text("terms")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ledger = ledger_of(pipe, tmp_path / "ledger", tmp_path / "model")
    (tmp_path / "out").mkdir()
    write_export(ledger, pipe, Export(), tmp_path / "out")
    again = DiffusionPipeline.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with ledger.applied_to(pipe):
        mine, theirs = pipe.unet.state_dict(), again.unet.state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
    with safe_open(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert kinds == {"F16", "F32"}  # what did not change is as small as it was
    assert not list((tmp_path / "out").rglob("*.bin"))  # a loader might take it
    assert (tmp_path / "out" / "LICENSE.md").read_text() == "terms"


def test_a_base_without_safetensors_gets_some(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe.unet.save_pretrained(tmp_path / "model" / "unet", safe_serialization=False)
    assert list((tmp_path / "model" / "unet").glob("*.bin"))
    ledger = ledger_of(pipe, tmp_path / "ledger", tmp_path / "model")
    (tmp_path / "out").mkdir()
    write_export(ledger, pipe, Export(), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.bin"))
    again = DiffusionPipeline.from_pretrained(tmp_path / "out")
    with ledger.applied_to(pipe):
        assert torch.equal(drawn(again), drawn(pipe))


def test_of_the_hub_the_files_are_those_that_were_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place, commit = tmp_path / "hub" / "models--me--base", "0" * 40
    tiny.sd1().save_pretrained(place / "snapshots" / commit)  # and not whatever else the repository has
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    pipe = tiny.sd1()
    ledger = ledger_of(pipe, tmp_path / "ledger", Path("me/base"))
    (tmp_path / "out").mkdir()
    write_export(ledger, pipe, Export(), tmp_path / "out")
    again = DiffusionPipeline.from_pretrained(tmp_path / "out")
    with ledger.applied_to(pipe):
        assert torch.equal(drawn(again), drawn(pipe))
    with pytest.raises(InputError, match="expected the files of 'me/none' in the local cache, got none"):
        folder_of("me/none")


def test_a_trained_change_is_cut_and_says_what_it_misses(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    pipe.save_pretrained(tmp_path / "model")
    ledger = ledger_of(pipe, tmp_path / "ledger", tmp_path / "model")
    edit = erase(pipe, "gun", eraser=UCE(rows="last-subject"))
    noise = {name: DenseChange(delta=torch.randn(16, tiny.WIDTH)) for name in list(edit.changes)[:2]}
    ledger.add(replace(edit, changes=noise, rows=None))
    missed = []
    for rank in (4, 16):
        folder = tmp_path / str(rank)
        folder.mkdir()
        notes = write_export(ledger, pipe, Export(format="lora", rank=rank), folder).notes
        missed += [float(note.split(" it misses ")[1].split()[0]) for note in notes]
    assert len(missed) == 1  # at full rank nothing is missed
    assert 0.3 < missed[0] < 1


def test_what_a_lora_cannot_hold_is_refused(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.create(tmp_path / "ledger", backbone_of(pipe).fingerprint(), "model")
    edit = erase(pipe, "gun", eraser=UCE(rows="last-subject"))
    ledger.add(replace(edit, changes={"unet.conv_in.bias": DenseChange(delta=torch.ones(16))}, rows=None))
    with pytest.raises(InputError, match=r"lora: expected a change of linear or .* Use --format pipeline or edit"):
        write_export(ledger, pipe, Export(format="lora"), tmp_path)


def test_encoders_that_a_single_file_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    pipe = tiny.sdxl()
    pipe.save_pretrained(tmp_path / "model")
    ledger = ledger_of(pipe, tmp_path / "ledger", tmp_path / "model")
    with pytest.raises(InputError, match="expected text encoders of two widths"):
        write_export(ledger, pipe, Export(format="checkpoint"), tmp_path)


def test_what_cannot_be_asked_for_is_one_line() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown format 'kohia'\. Did you mean 'kohya'\?"):
        Export(format="kohia")
    with pytest.raises(InputError, match="rank: expected none for the format edit, got 4"):
        Export(format="edit", rank=4)
    with pytest.raises(InputError, match="guidance: expected the format pipeline, got lora"):
        Export(format="lora", guidance="a-star")
    with pytest.raises(UnknownNameError, match="Unknown guidance to export 'nothing'"):
        Export(guidance="nothing")


def test_nothing_that_stands_and_another_base_are_refused(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.create(tmp_path / "ledger", backbone_of(pipe).fingerprint(), "model")
    with pytest.raises(InputError, match="expected a ledger with a removal that stands"):
        write_export(ledger, pipe, Export(format="edit"), tmp_path)
    ledger.add(erase(pipe, "cat", eraser=UCE(rows="last-subject")))
    with pytest.raises(BaseMismatchError):
        write_export(ledger, tiny.sd1(seed=1), Export(format="edit"), tmp_path)


def test_a_record_tells_a_whole_export_from_another_or_a_changed_one(tmp_path: Path) -> None:
    pipe, export = tiny.sd1(), Export(format="edit")
    ledger = Ledger.create(tmp_path / "ledger", backbone_of(pipe).fingerprint(), "model")
    ledger.add(erase(pipe, "cat", eraser=UCE(rows="last-subject")))
    out = tmp_path / "out"
    out.mkdir()
    assert not already_written(ledger, export, out)
    written = write_export(ledger, pipe, export, out)
    write_record(written, out)
    assert already_written(ledger, export, out) == written
    write_record(written, out)  # it does not speak of itself
    assert already_written(ledger, export, out) == written
    assert not already_written(ledger, Export(format="lora"), out)
    ledger.add(erase(pipe, "gun", eraser=UCE(rows="last-subject")))
    assert not already_written(ledger, export, out)
    ledger.undo("2")
    assert already_written(ledger, export, out)
    (out / "edit.safetensors").write_bytes(b"else")
    assert not already_written(ledger, export, out)
