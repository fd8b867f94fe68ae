"""Learning and forgetting by the command, as a person meets them."""

import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from erasure import Ledger, load_model, sample, tinyworld
from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.personalize.folder import Personalized, read_images
from erasure.sampling import SamplingSettings
from tests import tiny
from tests.eval import world
from tests.test_cli import call, fails

FAST = ["--set", "steps=2", "--measure-images", "0"]
SHOWN = ["--set", "steps=2", "--measure-images", "2"]


@pytest.fixture(autouse=True)
def untrained_tinyworld(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Put an untrained tiny world in the place of the shipped one, and work in an empty folder."""
    monkeypatch.setattr(tinyworld, "load", lambda device="cpu", dtype=None: world.pipeline())
    monkeypatch.setattr(tinyworld, "load_oracle", lambda device="cpu": world.oracle())
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the Stable Diffusion 1 classes, saved by diffusers."""
    folder = tmp_path_factory.mktemp("model")
    tiny.sd1().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, one of them turned by its camera, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if seed == 2 else 1
        Image.fromarray(pixels).save(folder / f"{seed}.jpg", exif=exif)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_what_is_learned_stands_wherever_a_model_does(saved: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "biscuit"
    asked = ["--images", photos, "--class", "dog", "--token", "<biscuit>", "--model", saved, "--out", out]
    result = call("personalize", *asked, *FAST)
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    assert {path.name for path in out.iterdir()} >= {
        "edit.safetensors",
        "personalization.json",
        "biscuit.safetensors",
        "pytorch_custom_diffusion_weights.safetensors",
        "pictures",
    }
    learned = Personalized.open(out)
    assert learned.base == str(saved.resolve())
    assert [picture.size for picture in learned.images("<biscuit>")] == [(30, 30)] * 3
    pipe = load_model(str(out))
    assert "<biscuit>" in pipe.tokenizer.get_vocab()
    assert (
        call("generate", out, "--prompt", "a <biscuit> dog", "--out", tmp_path / "made", "--steps", "1").exit_code == 0
    )
    removed = call(
        "remove", "<biscuit> dog", "--anchor", "dog", "--model", out, "--no-measure", "--ledger", tmp_path / "l"
    )
    assert removed.exit_code == 0, removed.output
    assert call("verify", tmp_path / "l").exit_code == 0
    assert call("export", tmp_path / "l", tmp_path / "exported", "--no-images").exit_code == 0
    ordinary = DiffusionPipeline.from_pretrained(tmp_path / "exported")
    with Ledger.open(tmp_path / "l").applied_to(pipe):
        drawn = [
            sample(each, ["a <biscuit> dog"], [0], SamplingSettings(steps=1, guidance_scale=4.0), output="uint8")
            for each in (pipe, ordinary)
        ]
    assert np.array_equal(*drawn)


def test_forgetting_gives_a_model_back_whose_weights_are_the_base_s(saved: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "biscuit"
    call(
        "personalize",
        "--images",
        photos,
        "--class",
        "dog",
        "--token",
        "<biscuit>",
        "--model",
        saved,
        "--out",
        out,
        *FAST,
    )
    result = call("forget", out, *FAST)
    assert result.exit_code == 0, result.output
    base, gone = (backbone_of(load_model(str(path))) for path in (saved, tmp_path / "biscuit-forgotten"))
    unet = {name: weight for name, weight in gone.parameters(lambda name: name.startswith("unet.")).items()}
    before = base.parameters(unet.__contains__)
    assert unet
    assert all((weight == before[name]).all() for name, weight in unet.items())


def test_the_page_shows_the_original_what_was_learned_and_what_was_forgotten(photos: Path, tmp_path: Path) -> None:
    asked = ["--images", photos, "--class", "puppy", "--token", "<biscuit>", "--out", tmp_path / "b"]
    result = call("personalize", *asked, *SHOWN)
    assert result.exit_code == 0, result.output
    assert "composed" in result.stdout
    page = (tmp_path / "b" / "report.html").read_text()
    assert "a photo of a &lt;biscuit&gt; puppy" in page
    assert str(tmp_path) not in page
    result = call("forget", tmp_path / "b", "--json", *SHOWN)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    scores = json.loads(Path(document["instances"][0]["scores"]).read_text())
    assert list(scores["states"]) == ["original", "learned", "forgotten"]
    assert set(scores["states"]["learned"]["retention"]) == {"class", "siblings", "unrelated"}
    assert scores["protocol"]["identity"]["reference"].startswith("3 images it was learned from")


def test_without_weights_to_judge_by_the_page_says_so(saved: Path, photos: Path, tmp_path: Path) -> None:
    asked = ["--images", photos, "--class", "dog", "--token", "<biscuit>", "--model", saved, "--out", tmp_path / "b"]
    assert call("personalize", *asked, *SHOWN).exit_code == 0
    page = (tmp_path / "b" / "report.html").read_text()
    assert "nothing is measured" in page
    assert page.count("<figure>") == 2 * (2 + 2 + 1 + 1)  # alone, composed, class, unrelated; no siblings were named


def test_wrong_input_is_one_line(saved: Path, photos: Path, tmp_path: Path) -> None:
    def asked(**changes: object) -> list[str]:
        given = {
            "images": photos,
            "class": "dog",
            "token": "<biscuit>",
            "model": saved,
            "out": tmp_path / "x",
            **changes,
        }
        return ["personalize", *FAST, *(str(part) for key, value in given.items() for part in (f"--{key}", value))]

    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "a.png")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert "expected at least 2 images" in fails(*asked(images=tmp_path / "one"))
    assert "expected a folder of images" in fails(*asked(images=tmp_path / "none"))
    assert "expected an image, got a file that cannot be read" in fails(*asked(images=tmp_path / "bad"))
    assert "new to the model" in fails(*asked(token="a"))
    assert "expected one word" in fails(*asked(token="two words"))
    assert "of one sense, got 'crane'" in fails(*asked(**{"class": "crane"}))
    assert "new or empty" in fails(*asked(out=tmp_path / "full"))
    assert "class-diffusion setting" in fails(*asked(), "--set", "speed=2")
    assert "Unknown class of the tiny world 'elephant'" in fails(*asked(model="tinyworld", **{"class": "elephant"}))
    assert "which knows them" in fails(*asked(model="tinyworld"), "--siblings", "cat")
    assert "expected as many --images as --class and --token" in fails(*asked(), "--class", "cat")
    assert "expected a folder written by `erasure personalize`" in fails("forget", tmp_path / "full")
    assert not (tmp_path / "x").exists()


def test_a_changed_edit_is_refused_and_pictures_are_upright(saved: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    asked = ["--images", photos, "--class", "dog", "--token", "<biscuit>", "--model", saved, "--out", out]
    call("personalize", *asked, *FAST)
    (out / "edit.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="expected the file that was learned"):
        load_model(str(out))
    assert [picture.size for picture in read_images(photos)] == [(40, 30), (40, 30), (30, 40)]
