"""Models whose weights stay in their files, beside the same models loaded."""

import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from erasure import erase, load_model
from erasure.backbones import backbone_of, families
from erasure.backbones.base import Backbone
from erasure.backbones.storage import is_stored
from erasure.backbones.streaming import blocks_of
from erasure.errors import InputError
from erasure.io.tensor_files import StoredTensor, stored_tensors
from erasure.loading import load_stored
from tests import tiny
from tests.pipelines.test_export import save_whole

PROMPTS = ["a cat", "", *(f"a dog and {count} cats" for count in range(40)), "a cat"]


@pytest.fixture(scope="module", params=sorted(tiny.FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, and with a variant in float16 beside them."""
    path = tmp_path_factory.mktemp(request.param) / "model"
    save_whole(request.param, path)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder of a tiny XL model in shards, to be damaged."""
    tiny.sdxl().save_pretrained(tmp_path / "model", max_shard_size="100KB")
    return tmp_path / "model"


def tensors_of(edit: Any) -> list[torch.Tensor]:
    maps = [change.as_map.map for change in {id(each): each for each in edit.changes.values()}.values()]
    return [factor for each in maps for factor in (each.u, each.v) if factor is not None]


def test_it_is_the_loaded_model_to_an_eraser(folder: Path) -> None:
    loaded, stored = backbone_of(load_model(str(folder))), backbone_of(load_stored(str(folder)))
    assert isinstance(stored, Backbone)
    assert is_stored(stored.pipe)
    assert not is_stored(loaded.pipe)
    for name in ("family", "device", "dtype"):
        assert getattr(stored, name) == getattr(loaded, name)
    assert stored.fingerprint() == loaded.fingerprint()
    assert stored.sites() == loaded.sites()
    assert torch.equal(stored.schedule.alphas_cumprod, loaded.schedule.alphas_cumprod)
    theirs, ours = loaded.encode(PROMPTS), stored.encode(PROMPTS)
    assert torch.equal(theirs.states, ours.states)
    assert (theirs.pooled is None) == (ours.pooled is None)
    assert theirs.pooled is None or ours.pooled is None or torch.equal(theirs.pooled, ours.pooled)
    assert theirs.offsets == ours.offsets


def test_a_fit_is_that_of_the_loaded_model_and_reads_no_denoiser(folder: Path, monkeypatch: Any) -> None:
    wanted = erase(load_model(str(folder)), "Van Gogh", kind="style", preserve=["Monet"])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a denoiser was loaded")

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", refuse)
    monkeypatch.setattr(UNet2DConditionModel, "load_state_dict", refuse)
    stored = load_stored(str(folder))
    found = erase(stored, "Van Gogh", kind="style", preserve=["Monet"])
    assert found.changes.keys() == wanted.changes.keys()
    pairs = list(zip(tensors_of(found), tensors_of(wanted), strict=True))
    assert pairs
    assert all(torch.equal(one, other) for one, other in pairs)
    assert all(parameter.is_meta for parameter in stored.unet.parameters())
    assert all(parameter.is_meta for parameter in stored.text_encoder.parameters())


def test_the_weights_of_one_layer_are_in_memory_at_once(copy: Path, monkeypatch: Any) -> None:
    seen: list[weakref.ref[Any]] = []
    own = StoredTensor.read

    def read(tensor: StoredTensor) -> torch.Tensor:
        in_memory = {each for reference in seen if (each := reference()) is not None}
        assert len(in_memory) <= 1  # the weight beside a bias
        content = own(tensor)
        seen.append(weakref.ref(content))
        return content

    monkeypatch.setattr(StoredTensor, "read", read)
    backbone = backbone_of(load_stored(str(copy)))
    backbone.encode(["a cat"])
    layers = [len(blocks_of(encoder)) for encoder in backbone.text_encoders().values()]
    assert len(seen) > 12 * sum(layers)
    assert all(reference() is None for reference in seen)
    assert all(p.is_meta for encoder in backbone.text_encoders().values() for p in encoder.parameters())


def test_rows_of_a_tensor_are_read_alone(tmp_path: Path) -> None:
    weight = torch.randn(50, 7).to(torch.bfloat16)
    save_file({"weight": weight}, tmp_path / "file")
    assert torch.equal(stored_tensors(tmp_path / "file")["weight"].rows([3, 0, 49]), weight[[3, 0, 49]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_read_as_they_are_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.sd1().to(dtype).save_pretrained(tmp_path / "model")
    loaded, stored = (backbone_of(load(str(tmp_path / "model"))) for load in (load_model, load_stored))
    assert stored.fingerprint() == loaded.fingerprint()
    assert torch.equal(stored.encode(PROMPTS).states, loaded.encode(PROMPTS).states)


def test_the_shipped_model_is_read_from_its_files() -> None:
    assert backbone_of(load_stored()).fingerprint() == backbone_of(load_model()).fingerprint()


def test_large_tensors_are_read_by_a_few_of_their_entries(tmp_path: Path) -> None:
    weight = torch.randn(1500, 700)
    save_file({"small": torch.arange(10.0), "weight": weight, "empty": torch.empty(0, 3)}, tmp_path / "file")
    found = stored_tensors(tmp_path / "file")
    assert torch.equal(found["weight"].every(16_407), weight.reshape(-1)[::16_407])
    assert torch.equal(found["weight"].every(3), weight.reshape(-1)[::3])
    assert torch.equal(found["weight"].read(), weight)
    assert torch.equal(found["small"].every(3), torch.tensor([0.0, 3.0, 6.0, 9.0]))
    assert found["empty"].read().shape == (0, 3)


def test_what_needs_weights_says_so(copy: Path) -> None:
    backbone = backbone_of(load_stored(str(copy)))
    assert backbone.parameters(lambda _: False) == {}
    with pytest.raises(InputError, match=r"expected one in memory, got files, for 'unet\..* Leave --low-memory out"):
        backbone.parameters(lambda name: name.startswith("unet."))
    with pytest.raises(InputError, match="expected one in memory, got files, to predict with"):
        backbone.predict(torch.zeros(1, 4, 8, 8), torch.tensor(1), backbone.encode(["a"]))
    with (
        pytest.raises(InputError, match="expected one in memory"),
        erase(backbone.pipe, "cat").applied_to(backbone.pipe),
    ):
        pass


def damaged(folder: Path) -> Iterator[tuple[str, Path]]:
    """Damage a model in one way after another, each time giving what is said of it and the folder."""
    unet = folder / "unet"
    shard = sorted(unet.glob("*-of-*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    yield "expected all that its header names, got a file that ends before", folder
    shard.write_bytes(b"not at all what is wanted here")
    yield "expected a safetensors file, got something else", folder
    shard.unlink()
    yield "expected a file to read, got 'No such file or directory'", folder
    shard.write_bytes(whole)
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, shard)
    yield f"got none for '{name}'", folder
    save_file({**tensors, name: torch.zeros(3, 1)}, shard)
    yield "got one of shape (3, 1)", folder
    shard.write_bytes(whole)
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    listed = index.read_text()
    index.write_text("{}")
    yield "expected a list of shards, got something else", folder
    index.unlink()
    yield "expected main files of weights in", folder
    index.write_text(listed)
    config = (unet / "config.json").read_text()
    (unet / "config.json").unlink()
    yield "expected a complete diffusers model in", folder
    (unet / "config.json").write_text(config)
    shutil.rmtree(folder / "vae")
    yield "expected safetensors files in", folder
    (folder / "model_index.json").write_text("{")
    yield "expected a complete diffusers model in", folder
    (folder / "model_index.json").unlink()
    yield "expected a folder with a model_index.json", folder
    yield "expected 'tinyworld', a folder or a Hub id 'owner/name'", folder / "nowhere"


def test_damage_is_one_line(copy: Path) -> None:
    for message, folder in damaged(copy):
        with pytest.raises(InputError) as raised:
            backbone_of(load_stored(str(folder))).fingerprint()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_family_that_is_not_covered_is_one_line(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"expected a pipeline of AuraFlow, .*FLUX\.1, .*Stable Diffusion 1\.x"):
        backbone_of(load_stored(str(copy)))


def test_a_personalised_model_is_loaded_whole(tmp_path: Path) -> None:
    (tmp_path / "personalization.json").write_text("{}")
    with pytest.raises(InputError, match="got the personalised"):
        load_stored(str(tmp_path))


def test_the_hub_out_of_reach_is_one_line() -> None:
    with pytest.raises(InputError, match="expected a folder or a model on the Hub, got 'nobody/nothing'"):
        load_stored("nobody/nothing")


def test_families_are_named_once() -> None:
    assert len(families()) == len(set(families()))
    assert {"FLUX.1", "Stable Diffusion 3", "Stable Diffusion XL"} <= set(families())
