"""CLIP by name, and score and accuracies on top: real open_clip classes at tiny size, the tiny world's judge."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from erasure import tinyworld
from erasure.errors import InputError, MissingExtraError, UnknownNameError
from erasure.eval.features.clip import OpenClip, TextTower, truncated
from erasure.eval.features.image_features import extractor
from erasure.eval.features.weights import MissingWeightsError
from erasure.eval.metrics.clip_accuracy import ClipAccuracy, right_prob, right_top1
from erasure.eval.metrics.clip_score import ClipScore, clip_score
from erasure.judge import Clip

from .tiny_judges import CLIP_CONFIG, open_clip_judge, pictures, seeded


def _long(words: int, last: str) -> str:
    return " ".join(["cat"] * (words - 1) + [last])


def test_score_of_equal_orthogonal_and_opposite_features() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 3**0.5]])
    expected = torch.tensor([100.0, 0.0, -100.0, 50.0], dtype=torch.float64)  # below 0 it stays
    torch.testing.assert_close(clip_score(images, texts), expected)


@pytest.mark.parametrize("place", [71, 72, 73, 74, 75])
def test_long_prompts_that_differ_before_the_end_score_differently(place: int) -> None:
    # 77 positions hold 75 words between start and end of text.
    clip = open_clip_judge()
    one, other = clip.text_features([_long(place, "dog"), _long(place, "house")])
    assert not torch.equal(one, other)
    assert clip.truncated([_long(place, "dog")]) == []


def test_a_prompt_that_is_cut_keeps_its_end_of_text_and_is_reported() -> None:
    clip, short = open_clip_judge(), "a cat"
    one, other = _long(76, "dog"), _long(76, "house")
    ids = clip._ids([one, other])
    assert ids[:, -1].tolist() == [clip.tokenizer.eot_token_id] * 2
    features = clip.text_features([one, other, _long(75, "cat")])
    assert torch.equal(features[0], features[1])  # they cannot be told apart, so it is said
    assert torch.equal(features[0], features[2])
    metric = ClipScore(clip=clip).update(pictures(4), [one, short, other, one])
    score = metric.compute()
    assert score.truncated == (one, other)
    assert score.as_json()["truncated"] == 2


def test_the_judge_reports_what_it_cuts() -> None:
    judge = tinyworld.load_clip()
    long = " ".join(["a dog on the beach"] * 12)
    assert truncated(judge, ["a dog", long]) == [long]
    ids = judge.ids([long, "a dog"])
    assert (ids == judge.tokenizer.eos_token_id).any(1).all()


@pytest.mark.parametrize("form", ["PIL", "float array", "float tensor", "half tensor"])
def test_float_and_uint8_pictures_score_the_same(form: str) -> None:
    images = pictures(3, size=48)
    array = np.stack([np.asarray(image) for image in images])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    given: Any = {
        "PIL": images,
        "float array": array / 255,
        "float tensor": tensor.float() / 255,
        "half tensor": (tensor.float() / 255).half(),
    }[form]
    prompts = ["a cat", "a dog", "a house"]
    clip = open_clip_judge()
    expected = ClipScore(clip=clip).update(tensor, prompts).compute()
    assert ClipScore(clip=clip).update(given, prompts).compute() == expected


def test_a_last_batch_of_one_changes_no_mean_and_the_last_picture_is_not_the_mean() -> None:
    images, prompts, clip = pictures(7), [f"{word} cat" for word in "abcdefg"], open_clip_judge()
    whole = ClipScore(clip=clip).update(images, prompts).compute()
    parts = ClipScore(clip=clip).update(images[:6], prompts[:6]).update(images[6:], prompts[6:]).compute()
    assert parts.value == pytest.approx(whole.value, rel=1e-6)
    assert parts.n == 7
    assert whole.value == pytest.approx(float(np.mean(whole.per_image)))
    assert whole.value != pytest.approx(whole.per_image[-1], rel=1e-3)


def test_each_picture_meets_its_own_prompt() -> None:
    images, clip = pictures(3), open_clip_judge()
    prompts = ["a cat", "a red house", "an empty street"]
    together = ClipScore(clip=clip).update(images, prompts).compute().per_image
    alone = [ClipScore(clip=clip).update([i], [p]).compute().value for i, p in zip(images, prompts, strict=True)]
    assert list(together) == pytest.approx(alone, abs=1e-4)
    assert len({round(value, 4) for value in together}) == 3


class CountingClip:
    """The tiny model, which also counts the texts that it reads."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def image_features(self, pictures: list[Image.Image], /) -> torch.Tensor:
        return open_clip_judge().image_features(pictures)

    def text_features(self, texts: list[str], /) -> torch.Tensor:
        self.read += texts
        return open_clip_judge().text_features(texts)


def test_a_repeated_prompt_is_read_once() -> None:
    clip = CountingClip()
    metric = ClipScore(clip=clip, target=("cat",))
    for _ in range(3):
        metric.update(pictures(3), ["a cat on a sofa", "a dog", "a cat on a sofa"])
    assert sorted(clip.read) == ["a cat on a sofa", "a dog", "a dog", "on a sofa"]  # once a text of each score


def test_scores_against_the_prompt_and_without_the_target() -> None:
    images, clip = pictures(3), open_clip_judge()
    prompts = ["a cat on a sofa", "a dog", "a cat"]
    metric = ClipScore(clip=clip, target=("cat",)).update(images, prompts)
    rest = metric.compute_without_target()
    expected = ClipScore(clip=clip).update(images[:2], ["on a sofa", "a dog"]).compute()
    assert rest.per_image == pytest.approx(expected.per_image, abs=1e-4)
    assert (rest.n, rest.left_out) == (2, 1)  # of "a cat" nothing is left
    assert metric.compute().n == 3
    assert rest.setup != metric.setup
    with pytest.raises(InputError, match="names of the target"):
        ClipScore(clip=clip).update(images, prompts).compute_without_target()


def test_the_tiny_worlds_judge_is_a_clip() -> None:
    judge, images = tinyworld.load_clip(), pictures(4, size=64)
    texts = ("a cat", "a house")
    assert isinstance(judge, Clip)
    score = ClipScore(clip=judge, target=("cat",)).update(images, ["a cat in the city", "a cat", "a dog", "a house"])
    cosines = judge.image_features(images) @ judge.text_features(texts).T
    assert [score.compute().per_image[row] for row in (1, 3)] == pytest.approx(
        [100 * float(cosines[1, 0]), 100 * float(cosines[3, 1])], abs=1e-3
    )
    assert score.compute_without_target().left_out == 1
    assert score.setup.backbone.startswith("tinyworld-judge ")
    scale = float(judge.model.logit_scale.detach().exp())
    accuracy = ClipAccuracy(clip=judge, texts=texts, logit_scale=scale).update(images, [0, 1, 0, 1])
    expected = (scale * cosines).softmax(1)[range(4), [0, 1, 0, 1]]
    assert accuracy.compute_prob().per_image == pytest.approx(expected.tolist(), abs=1e-5)


def test_no_pictures_and_too_few_prompts() -> None:
    clip = open_clip_judge()
    assert ClipScore(clip=clip).update(pictures(1), ["a cat"]).update([], []).compute().n == 1
    with pytest.raises(InputError, match="a prompt an image, got 1 for 2"):
        ClipScore(clip=clip).update(pictures(2), ["a cat"])
    with pytest.raises(InputError, match="got none"):
        ClipScore(clip=clip).compute()


def test_the_tower_keeps_the_order_of_the_texts() -> None:
    clip = open_clip_judge()
    tower, texts = TextTower(clip), ["a dog", "a cat", "a dog", "a house"]
    torch.testing.assert_close(tower.features(texts), clip.text_features(texts))


def test_top1_and_prob_of_known_logits() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    right = torch.tensor([0, 0, 1])
    assert right_top1(logits, right).tolist() == [True, False, False]  # a tie is no hit
    e = 2.718281828459045
    expected = torch.tensor([e**2 / (e**2 + e + 1), 1 / (2 + e), e / (2 * e + 1)])
    torch.testing.assert_close(right_prob(logits, right), expected)


def test_one_softmax() -> None:
    # A second softmax over two classes cannot leave [0.27, 0.73].
    sure = right_prob(torch.tensor([[50.0, 0.0]]), torch.tensor([0]))
    assert float(sure) > 0.99


def test_both_accuracies_stream_under_their_own_names() -> None:
    images, clip, texts = pictures(7), open_clip_judge(), ("a cat", "a dog", "a house")
    right = [0, 1, 2, 0, 1, 2, 1]
    whole = ClipAccuracy(clip=clip, texts=texts).update(images, right)
    parts = ClipAccuracy(clip=clip, texts=texts).update(images[:6], right[:6]).update(images[6:], right[6:])
    assert whole.compute_prob().value == pytest.approx(parts.compute_prob().value, rel=1e-5)
    assert whole.compute_top1() == parts.compute_top1()
    logits = 100 * clip.image_features(images) @ clip.text_features(texts).T
    assert whole.compute_top1().value == pytest.approx((logits.argmax(1) == torch.tensor(right)).float().mean().item())
    setups = [whole.compute_top1().setup, whole.compute_prob().setup]
    assert [setup and setup.metric for setup in setups] == ["clip_accuracy_top1", "clip_accuracy_prob"]
    assert whole.compute_top1().interval is not None


def test_accuracy_wants_indices_of_different_texts() -> None:
    clip = open_clip_judge()
    with pytest.raises(InputError, match="different texts"):
        ClipAccuracy(clip=clip, texts=("a cat", "a cat"))
    with pytest.raises(InputError, match="from 0 to 1, got 2"):
        ClipAccuracy(clip=clip, texts=("a cat", "a dog")).update(pictures(1), [2])


@pytest.fixture
def tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make open_clip know a tiny model with weights trained with QuickGELU and others without."""
    (tmp_path / "tiny-clip.json").write_text(json.dumps(CLIP_CONFIG))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    file = tmp_path / "weights.pt"
    torch.save(seeded(lambda: open_clip.CLIP(**CLIP_CONFIG)).state_dict(), file)
    common = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "interpolation": "bilinear", "resize_mode": "squash"}
    known = {
        "quick": {"file": str(file), "quick_gelu": True, **common},
        "plain": {"file": str(file), **common},
        "hub": {"hf_hub": "nobody/nothing-here/", **common},
        "web": {"url": "https://example.invalid/nothing-here.pt", **common},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", known)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return file


@pytest.mark.parametrize(("tag", "activation"), [("quick", "QuickGELU"), ("plain", "GELU")])
def test_the_activation_is_the_one_that_the_tag_was_trained_with(tags: Path, tag: str, activation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # open_clip warns of a mismatch and goes on
        clip = OpenClip.load(f"tiny-clip:{tag}")
    found = {type(module).__name__ for module in clip.model.modules() if "GELU" in type(module).__name__}
    assert found == {activation}
    assert not clip.model.training


def test_the_preprocessing_is_the_tags(tags: Path) -> None:
    clip = OpenClip.load("tiny-clip:plain")
    assert clip.resize == "bilinear, antialias, squash, 32x32"
    assert clip._preprocess(Image.new("RGB", (40, 60), (255, 255, 255))).unique().tolist() == [2.0]


def test_image_features_by_name(tags: Path) -> None:
    read, images = extractor("clip:tiny-clip:plain"), pictures(3)
    rows = read(images)
    torch.testing.assert_close(rows, OpenClip.load("tiny-clip:plain").image_features(images))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert read.setup("kid").backbone == "tiny-clip:plain"


@pytest.mark.parametrize("tag", ["hub", "web"])
@pytest.mark.parametrize("download", [False, True])
def test_missing_weights_are_one_line_that_says_how_to_get_them(
    tags: Path, tag: str, download: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        assert download, "asked the network without leave"
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(MissingWeightsError, match="nothing-here") as caught:
        OpenClip.load(f"tiny-clip:{tag}", download=download)
    message = str(caught.value)
    assert "\n" not in message
    assert "Fetch" in message
    assert ("download=True" in message) is not download


def test_unknown_names(tags: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'quick'"):
        OpenClip.load("tiny-clip:quik")
    with pytest.raises(UnknownNameError, match="open_clip model"):
        OpenClip.load("ViT-B-31:openai")
    with pytest.raises(InputError, match="MODEL:PRETRAINED"):
        OpenClip.load("ViT-B-32")


def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"erasure\[eval\]"):
        OpenClip.load("ViT-B-32:openai")


@pytest.mark.weights
def test_real_clip_knows_colours() -> None:
    try:
        clip = OpenClip.load("ViT-B-32:openai")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    images = [Image.new("RGB", (224, 224), colour) for colour in ("red", "blue")]
    right = ClipScore(clip=clip).update(images, ["a red square", "a blue square"]).compute()
    wrong = ClipScore(clip=clip).update(images, ["a blue square", "a red square"]).compute()
    assert min(right.per_image) > max(wrong.per_image)
    assert 20 < right.value < 40
