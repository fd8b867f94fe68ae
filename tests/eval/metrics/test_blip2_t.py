"""The three scores behind BLIP2-T: the real classes at tiny random size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from erasure.errors import InputError
from erasure.eval.features.weights import MissingWeightsError
from erasure.eval.metrics.blip2_t import Blip2Itc, Blip2Itm, BlipItc, RetrievalScore, match_probability, paired

from .tiny_judges import bert_tokenizer, blip, blip2, image_processor, pictures

PROMPTS = ["a photo of a dog", "an empty street at night", "a red house", "the cat and the bird in a blue tree"]

METRICS: dict[str, Callable[[], RetrievalScore]] = {
    "blip_itc": lambda: BlipItc(model=blip()[0], processor=blip()[1], weights="tiny"),
    "blip2_itc": lambda: _blip2(Blip2Itc, image_token=False),
    "blip2_itc, image token": lambda: _blip2(Blip2Itc, image_token=True),
    "blip2_itm": lambda: _blip2(Blip2Itm, image_token=False),
    "blip2_itm, image token": lambda: _blip2(Blip2Itm, image_token=True),
}


def _blip2(metric: Any, *, image_token: bool) -> Any:
    model, processor = blip2(image_token=image_token)
    return metric(model=model, processor=processor, weights="tiny")


def test_probability_of_known_logits_is_one_softmax() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 50.0], [1.0, 0.0]])
    expected = torch.tensor([0.5, 1.0, 1 / (1 + 2.718281828459045)], dtype=torch.float64)
    torch.testing.assert_close(match_probability(logits), expected)
    twice = logits.softmax(1).softmax(1)[:, 1]
    assert float(twice[1]) < 0.75  # what a second softmax would have made of certainty


def test_paired_takes_each_picture_with_its_own_text() -> None:
    assert paired(torch.tensor([[1.0, 9.0], [9.0, 2.0]])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", METRICS)
def test_different_prompts_score_differently(name: str) -> None:
    image = pictures(1)[0]
    score = METRICS[name]().update([image] * 4, PROMPTS).compute()
    assert len(set(score.per_image)) == 4
    assert score.setup is not None
    assert score.setup.metric == name.partition(",")[0]
    assert "32" in score.setup.resize


@pytest.mark.parametrize("name", METRICS)
def test_different_pictures_score_differently(name: str) -> None:
    assert len(set(METRICS[name]().update(pictures(4), PROMPTS[:1] * 4).compute().per_image)) == 4


@pytest.mark.parametrize("name", METRICS)
def test_neither_batch_nor_padding_changes_a_score(name: str) -> None:
    images = pictures(4)
    whole = METRICS[name]().update(images, PROMPTS).compute()
    parts = METRICS[name]().update(images[:3], PROMPTS[:3]).update(images[3:], PROMPTS[3:]).compute()
    assert parts.per_image == pytest.approx(whole.per_image, abs=1e-5)
    alone = [METRICS[name]().update([i], [p]).compute().value for i, p in zip(images, PROMPTS, strict=True)]
    assert list(whole.per_image) == pytest.approx(alone, abs=1e-5)
    assert whole.value == pytest.approx(sum(whole.per_image) / 4)


def test_blip_itc_is_the_cosine_of_the_two_class_tokens() -> None:
    model, processor = blip()
    inputs = processor(images=pictures(2), text=PROMPTS[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        seen = model.vision_proj(model.vision_model(inputs.pixel_values).last_hidden_state[:, 0])
        read = model.text_proj(model.text_encoder(inputs.input_ids, inputs.attention_mask).last_hidden_state[:, 0])
    expected = torch.nn.functional.cosine_similarity(seen, read).tolist()
    assert METRICS["blip_itc"]().update(pictures(2), PROMPTS[:2]).compute().per_image == pytest.approx(
        expected, abs=1e-5
    )


def test_blip2_itc_is_the_best_query() -> None:
    model, _ = blip2(image_token=False)
    metric = METRICS["blip2_itc"]()
    text = bert_tokenizer()(PROMPTS[0], return_tensors="pt")
    pixels = image_processor()(pictures(1), return_tensors="pt").pixel_values
    with torch.no_grad():
        out = model(pixel_values=pixels, input_ids=text.input_ids, attention_mask=text.attention_mask)
    cosines = out.image_embeds[0] @ out.text_embeds[0]  # both are of unit length
    assert len(cosines) == 4
    assert metric.update(pictures(1), PROMPTS[:1]).compute().value == pytest.approx(float(cosines.max()), abs=1e-5)
    assert float(cosines.max()) != pytest.approx(float(cosines.mean()), abs=1e-4)


def test_blip2_itm_is_a_probability_off_the_models_logits() -> None:
    model, _ = blip2(image_token=False)
    text = bert_tokenizer()(PROMPTS[0], return_tensors="pt")
    pixels = image_processor()(pictures(1), return_tensors="pt").pixel_values
    with torch.no_grad():
        (logits,) = model(
            pixel_values=pixels,
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            use_image_text_matching_head=True,
        ).logits_per_image
    expected = 1 / (1 + float((logits[0] - logits[1]).exp()))
    assert METRICS["blip2_itm"]().update(pictures(1), PROMPTS[:1]).compute().value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["blip2_itc", "blip2_itm"])
def test_an_image_token_in_the_configuration_changes_nothing(name: str) -> None:
    # Both models have the same weights; one cuts as many tokens off the text as it has queries.
    images = pictures(4)
    plain, token = (METRICS[key]().update(images, PROMPTS).compute() for key in (name, f"{name}, image token"))
    assert token.per_image == pytest.approx(plain.per_image, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "blip_itc"])
def test_long_prompts_are_cut_at_32_tokens_and_reported(name: str) -> None:
    long = " ".join(["cat"] * 29)  # with start and end 31 tokens; a word more fits, two do not
    texts = [f"{long} dog", f"{long} house", f"{long} cat dog", f"{long} cat house"]
    score = METRICS[name]().update(pictures(1) * 4, texts).compute()
    assert score.per_image[0] != score.per_image[1]
    assert score.per_image[2] == score.per_image[3]
    assert score.truncated == tuple(texts[2:])


def test_the_published_form_reads_texts_to_the_end() -> None:
    metric = METRICS["blip_itc"]()
    longest = metric.model.config.text_config.max_position_embeddings
    long = " ".join(["cat"] * (longest - 3))  # with start and end one token less than there are positions
    texts = [f"{long} dog", f"{long} house", f"{long} cat dog", f"{long} cat house"]
    score = metric.update(pictures(1) * 4, texts).compute()
    assert longest > 32
    assert score.per_image[0] != score.per_image[1]
    assert score.per_image[2] == score.per_image[3]
    assert score.truncated == tuple(texts[2:])


def test_pixels_come_from_the_processor() -> None:
    class Recording(BlipItc):
        def _forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(pixels.shape[2:]))
            values.extend(pixels.unique().tolist())
            return super()._forward(pixels, ids, mask)

    shapes: list[tuple[int, ...]] = []
    values: list[float] = []
    model, processor = blip()
    white = Image.new("RGB", (50, 70), (255, 255, 255))
    Recording(model=model, processor=processor, weights="tiny").update([white], ["a cat"])
    assert set(shapes) == {(32, 32)}
    mean, deviation = processor.image_processor.image_mean[0], processor.image_processor.image_std[0]
    assert max(values) < (1 - mean) / deviation + 0.5
    assert min(abs(value - (1 - mean) / deviation) for value in values) < 1e-4


def test_a_model_that_does_not_read_its_text_is_refused() -> None:
    class Deaf(BlipItc):
        def _forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return super()._forward(pixels, torch.full_like(ids, 2), torch.ones_like(mask))

    model, processor = blip()
    deaf = Deaf(model=model, processor=processor, weights="tiny")
    with pytest.raises(InputError, match="different scores for two different texts"):
        deaf.update(pictures(1), ["a cat"])


def test_as_many_prompts_as_pictures() -> None:
    with pytest.raises(InputError, match="got 1 for 2 images"):
        METRICS["blip_itc"]().update(pictures(2), ["a cat"])
    with pytest.raises(InputError, match="got none"):
        METRICS["blip_itc"]().compute()


def test_load_from_a_folder_gives_the_same_scores(tmp_path: Path) -> None:
    model, processor = blip()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    metric = BlipItc.load(str(tmp_path)).update(pictures(2), PROMPTS[:2])
    expected = METRICS["blip_itc"]().update(pictures(2), PROMPTS[:2]).compute()
    assert metric.compute().per_image == pytest.approx(expected.per_image, abs=1e-5)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    # transformers would fill them with random numbers and go on.
    model, processor = blip()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("text_proj")}
    model.save_pretrained(tmp_path, state_dict=state)
    processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"without 2 of its weights, 'text_proj.bias'"):
        BlipItc.load(str(tmp_path))


@pytest.mark.parametrize("metric", [BlipItc, Blip2Itc, Blip2Itm])
def test_missing_weights_are_one_line(metric: type[RetrievalScore]) -> None:
    with pytest.raises(MissingWeightsError, match="hf download nobody/nothing-here") as caught:
        metric.load("nobody/nothing-here")
    assert "\n" not in str(caught.value)
    assert "download=True" in str(caught.value)


@pytest.mark.weights
@pytest.mark.parametrize("metric", [BlipItc, Blip2Itc, Blip2Itm])
def test_real_weights_know_colours(metric: type[RetrievalScore]) -> None:
    try:
        judge = metric.load()
    except MissingWeightsError as error:
        pytest.skip(str(error))
    images = [Image.new("RGB", (384, 384), colour) for colour in ("red", "red")]
    right, wrong = judge.update(images, ["a plain red picture", "a photo of two dogs on a beach"]).compute().per_image
    assert right > wrong
