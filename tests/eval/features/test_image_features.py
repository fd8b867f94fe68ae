"""Feature extractors by name: the real classes at tiny or random weights, and what is said when weights are missing."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erasure import tinyworld
from erasure.errors import InputError, MissingExtraError, UnknownNameError
from erasure.eval.features.image_features import INCEPTION, FunctionExtractor, class_token, extractor, inception
from erasure.eval.features.weights import MissingWeightsError, from_url, model_from_hub
from erasure.eval.metrics.fid import Fid
from tests.eval.metrics.tiny_judges import open_clip_judge, pictures, save_vision_transformer


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_the_class_token_of_a_saved_transformer(kind: str, tmp_path: Path) -> None:
    folder = save_vision_transformer(tmp_path / kind, kind)
    read, images = extractor(f"hub:{folder}"), pictures(3)
    rows = read(images)
    assert rows.shape == (3, 32)
    assert torch.equal(rows, read(np.stack([np.asarray(image) for image in images])))
    torch.testing.assert_close(read(images[:1]), rows[:1])
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    setup = read.setup("fid")
    assert "class token" in setup.backbone
    assert "28" in setup.resize


def test_the_class_token_is_the_models_own(tmp_path: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Model

    folder = save_vision_transformer(tmp_path, "dinov2")
    model = Dinov2Model.from_pretrained(folder).eval()
    pixels = BitImageProcessor.from_pretrained(folder)(pictures(2), return_tensors="pt").pixel_values
    with torch.no_grad():
        torch.testing.assert_close(class_token(str(folder))(pictures(2)), model(pixels).pooler_output)


def test_any_function_is_an_extractor() -> None:
    oracle = tinyworld.load_oracle()
    images = pictures(5, size=64)
    given = FunctionExtractor(lambda pictures: oracle.read(pictures).features, "oracle")
    torch.testing.assert_close(given(images), extractor("tinyworld-oracle")(images))
    assert given(images).shape == (5, 256)
    judge = extractor("tinyworld-judge")(images)
    torch.testing.assert_close(judge.norm(dim=1), torch.ones(5))
    with pytest.raises(InputError, match="a row for each of 5 images, got 4"):
        FunctionExtractor(lambda pictures: torch.zeros(4, 2), "short")(images)


def test_the_oracles_features_make_a_distance() -> None:
    metric = Fid(extractor=extractor("tinyworld-oracle"))
    metric.update(pictures(6, size=64)).update_reference(pictures(6, size=64))
    assert metric.compute().value < 1e-4
    assert metric.setup.backbone.startswith("tinyworld-oracle ")


def test_clip_features_are_of_unit_length() -> None:
    clip = open_clip_judge()
    rows = FunctionExtractor(clip.image_features, clip.name)(pictures(3))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("name", ["incepton", "clip", "clip:", "hub:", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UnknownNameError, match="feature extractor"):
        extractor(name)


@pytest.mark.parametrize("name", ["dinov2", "dino", "hub:nobody/nothing-here", "clip:ViT-B-32:openai"])
def test_missing_weights_are_one_line_that_says_how_to_get_them(name: str, empty_caches: Path) -> None:
    with pytest.raises(MissingWeightsError, match="hf download") as caught:
        extractor(name)
    assert "\n" not in str(caught.value)
    assert "download=True" in str(caught.value)


def test_a_failed_download_says_so(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(MissingWeightsError, match=r"expected to download .* got 'no network'") as caught:
        from_url("https://example.invalid/net-0123abcd.pth", "here", download=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingWeightsError, match="expected to download") as caught:
        model_from_hub(_refuses("line one\nline two"), "nobody/nothing", "here", download=True)
    assert "line one" in str(caught.value)
    assert "\n" not in str(caught.value)


def _refuses(message: str) -> Any:
    class Model:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> Any:
            raise OSError(message)

    return Model


def test_a_download_is_kept_where_torch_looks(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(url: str, file: str, digest: str | None, progress: bool) -> None:
        fetched.append((url, digest))
        Path(file).write_bytes(b"weights")

    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    url = "https://example.invalid/net-0123abcd.pth"
    file = from_url(url, "here", download=True)
    assert file == empty_caches / "torch" / "hub" / "checkpoints" / "net-0123abcd.pth"
    assert from_url(url, "here", download=False) == file
    assert fetched == [(url, "0123abcd")]


def test_without_torch_fidelity_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match="torch-fidelity"):
        inception(antialias=False)


def test_missing_inception_weights_are_one_line(empty_caches: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")
    with pytest.raises(MissingWeightsError, match="weights-inception-2015-12-05") as caught:
        extractor("inception")
    assert "\n" not in str(caught.value)


def test_inception_at_random_weights(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

    file = empty_caches / "torch" / "hub" / "checkpoints" / Path(INCEPTION).name
    file.parent.mkdir(parents=True)
    torch.save({}, file)
    with monkeypatch.context() as patched, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patched.setattr(NoTrainInceptionV3, "load_state_dict", lambda self, state: None)
        net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):  # as they start, nothing reaches the last layer
                torch.nn.init.kaiming_normal_(module.weight)
        torch.save(net.state_dict(), file)
    plain, antialias = extractor("inception"), extractor("inception-antialias")
    images = [image.resize((400, 400), Image.Resampling.NEAREST) for image in pictures(3)]
    rows = plain(images)
    assert rows.shape == (3, 2048)
    assert rows.mean() > 0.01
    floats = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(rows, plain(floats))
    torch.testing.assert_close(rows[2:], plain(images[2:]), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(rows, antialias(images), rtol=1e-3, atol=1e-5)
    assert "no antialias" in plain.setup("fid").resize
    reference = FrechetInceptionDistance(feature_extractor_weights_path=str(file), antialias=False)
    pixels = (floats * 255).byte()
    reference.update(pixels, real=True)
    torch.testing.assert_close(reference.real_features_sum.float(), rows.sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["inception", "inception-antialias", "dinov2", "dino", "clip:ViT-B-32:openai"])
def test_real_weights_tell_pictures_apart(name: str) -> None:
    try:
        read = extractor(name)
    except (MissingWeightsError, MissingExtraError) as error:
        pytest.skip(str(error))
    noise, other = (pictures(2, size=256, seed=seed) for seed in (0, 1))
    plain = [Image.new("RGB", (256, 256), "red")]
    rows = torch.nn.functional.normalize(read([*noise, *other, *plain]), dim=1)
    assert float(rows[0] @ rows[2]) > float(rows[0] @ rows[4])
