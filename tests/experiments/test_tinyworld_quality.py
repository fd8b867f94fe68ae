"""The quality of the world's models: both kinds are read by the same questions."""

from pathlib import Path
from typing import Any

import pytest

from erasure import tinyworld
from erasure.errors import InputError
from erasure.tinyworld import models
from experiments import tinyworld_quality
from experiments.tinyworld_quality import attention_test, loaded, token_test


def transformer() -> Any:
    pipe = tinyworld.load()
    net = models.transformer(heads=2, head_dim=16, double_blocks=1, single_blocks=1)
    return models.assemble_flux(net, pipe.text_encoder, pipe.vae, pipe.tokenizer)


@pytest.mark.parametrize(
    ("make", "arms"),
    [
        (tinyworld.load, []),
        (transformer, ["sentence vector alone", "words, trailing and sentence vector"]),
    ],
)
def test_states_and_maps_of_either_model_are_read(make: Any, arms: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinyworld_quality, "TOKEN_TEST", 1)
    monkeypatch.setattr(tinyworld_quality.words, "OBJECTS", dict(list(tinyworld_quality.words.OBJECTS.items())[:3]))
    pipe = make()
    shown = token_test(pipe, tinyworld.load_oracle(), 2, 4.0)
    plain = ["words and trailing", "words alone", "trailing alone", "they disagree: words", "they disagree: trailing"]
    assert list(shown) == [*plain, *arms]
    assert {rate["n"] for rate in shown.values()} == {3}
    maps = attention_test(pipe, 4)
    assert maps["layers"]
    assert 0 < maps["other word"]["value"] < 1


def test_a_model_is_loaded_by_name_and_by_folder(tmp_path: Path) -> None:
    assert type(loaded("tinyworld")[0]) is type(loaded(str(tinyworld.MODEL))[0])
    with pytest.raises(InputError, match="expected a trained model"):
        loaded(str(tmp_path))
