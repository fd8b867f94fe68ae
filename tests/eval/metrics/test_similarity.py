"""CLIP-I and DINO-I: the mean over all pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erasure.errors import InputError
from erasure.eval.features.image_features import FunctionExtractor, extractor
from erasure.eval.features.weights import MissingWeightsError
from erasure.eval.metrics.clip_i import ClipI
from erasure.eval.metrics.dino_i import DinoI
from erasure.eval.metrics.similarity import ReferenceSimilarity, mean_similarity

from .tiny_judges import mean_colour, open_clip_judge, pictures, save_vision_transformer


def test_mean_of_equal_orthogonal_and_opposite() -> None:
    references = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    images = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([0.5, 0.5, -0.5, 2**-0.5], dtype=torch.float64)
    torch.testing.assert_close(mean_similarity(images, references), expected)


def test_it_is_the_mean_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    images, references = (torch.randn(n, 6, generator=generator).double() for n in (5, 7))
    pairs = torch.nn.functional.cosine_similarity(images[:, None], references[None], dim=2)
    torch.testing.assert_close(mean_similarity(images, references), pairs.mean(1))
    # The cosine with the mean reference is another number.
    assert not torch.allclose(torch.nn.functional.cosine_similarity(images, references.mean(0)[None]), pairs.mean(1))


@pytest.mark.parametrize("metric", [ClipI, DinoI])
def test_streaming_over_pictures_is_the_function_over_features(metric: type[ReferenceSimilarity]) -> None:
    images, references, read = pictures(7), pictures(4, seed=1), mean_colour()
    stream = metric(extractor=read, reference="photos of the dog")
    stream.update_reference(references[:3]).update_reference(references[3:])
    score = stream.update(images[:6]).update(images[6:]).compute()
    assert score.per_image == pytest.approx(mean_similarity(read(images), read(references)).tolist(), rel=1e-6)
    assert score.value == pytest.approx(np.mean(score.per_image))
    assert score.setup is not None
    assert (score.setup.metric, score.setup.reference) == (metric.name, "photos of the dog")


def test_real_classes_at_tiny_size(tmp_path: Path) -> None:
    clip = open_clip_judge()
    folder = save_vision_transformer(tmp_path, "vit")
    for metric in (
        ClipI(extractor=FunctionExtractor(clip.image_features, clip.name)),
        DinoI(extractor=extractor(f"hub:{folder}")),
    ):
        images = pictures(3)
        alike = metric.update_reference(images[:1]).update(images).compute().per_image
        assert alike[0] == pytest.approx(1, abs=1e-5)
        assert max(alike[1:]) < alike[0]


def test_references_come_first() -> None:
    metric = ClipI(extractor=mean_colour())
    with pytest.raises(InputError, match="reference images first"):
        metric.update(pictures(1))
    metric.update_reference(pictures(1)).update(pictures(1))
    with pytest.raises(InputError, match="before the first image"):
        metric.update_reference(pictures(1))


@pytest.mark.weights
@pytest.mark.parametrize("metric", [ClipI, DinoI])
def test_real_weights_know_a_colour_again(metric: type[ReferenceSimilarity]) -> None:
    try:
        judge = metric()  # type: ignore[call-arg]  # both have a judge of their own
    except MissingWeightsError as error:
        pytest.skip(str(error))
    red, noise = [Image.new("RGB", (224, 224), "red")], pictures(1, size=224)
    alike, other = judge.update_reference(red).update([*red, *noise]).compute().per_image
    assert alike == pytest.approx(1, abs=1e-3)
    assert other < alike
