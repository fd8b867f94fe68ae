"""Profiles: the data of a model, and all that is known of a world."""

from dataclasses import asdict
from pathlib import Path

import pytest

from erasure import load_model, registry
from erasure.concept import Concept
from erasure.erasers import eraser_class, eraser_names, make_eraser
from erasure.errors import InputError, UnknownNameError
from erasure.personalize.class_diffusion import ClassDiffusion
from erasure.profile import ModelProfile, profile_of
from tests import tiny

WORLD = profile_of("tinyworld")
TRANSFORMER = profile_of("tinyworld-flux")
OTHER = profile_of("someone/model")


def test_a_model_is_known_by_name_and_loaded() -> None:
    assert WORLD.name == "tinyworld"
    assert profile_of(load_model("tinyworld")) is WORLD
    assert profile_of(tiny.sd1()) is OTHER
    assert OTHER.name == "general"


def test_nothing_is_known_of_another_model() -> None:
    assert OTHER.concepts == ()
    assert OTHER.folder is None
    assert OTHER.settings("duge") == {}
    assert OTHER.example("uce") is None
    assert OTHER.canonical("cat") is None
    assert OTHER.prompts("cat", 3) == []
    requests = [{"target": "Van Gogh"}, 3]
    assert OTHER.completed(requests) == requests
    assert OTHER.class_name("teapot", ["cup"]) == "teapot"
    assert (OTHER.sampling.steps, OTHER.sampling.guidance_scale) == (25, 7.5)


@pytest.mark.parametrize("method", [*eraser_names(), ClassDiffusion.name])
def test_the_settings_of_a_world_are_settings_of_the_method(method: str) -> None:
    settings = WORLD.settings(method)
    if method == ClassDiffusion.name:
        assert asdict(ClassDiffusion(**settings)).items() >= settings.items()
    else:
        assert make_eraser(method, **settings).as_settings().items() >= settings.items()
        assert eraser_class(method).name == method


def test_a_request_is_completed_and_its_own_values_stay() -> None:
    (cat, gun, number) = WORLD.completed([{"target": "Kitty"}, {"target": "gun", "preserve": ["dog"]}, 3])
    assert cat == {
        "target": "cat",
        "kind": "object",
        "aliases": ["kitty", "feline"],
        "preserve": [name for name in WORLD.concepts if name not in ("cat", "Mittens")],
    }
    assert (gun["kind"], gun["preserve"]) == ("unsafe", ["dog"])
    assert number == 3
    assert Concept.from_json(cat).target == "cat"
    with pytest.raises(UnknownNameError, match=r"concept of the tiny world 'kat'"):
        WORLD.completed([{"target": "kat"}])
    phrases = {"target": "cat", "anchor": "a photo of an Animal", "preserve": ["red umbrella", "whiskered fish"]}
    assert WORLD.completed([phrases])[0].items() >= phrases.items()
    for field in ({"anchor": "dgo"}, {"preserve": ["bird", "dgo"]}):
        with pytest.raises(UnknownNameError, match=r"concept of the tiny world 'dgo'\. Did you mean 'dog'"):
            WORLD.completed([{"target": "cat", **field}])


def test_a_class_of_the_world_has_its_name_and_its_siblings() -> None:
    assert WORLD.class_name("puppy") == "dog"
    assert "cat" in WORLD.relatives("dog")
    assert "Biscuit" in WORLD.relatives("dog")
    with pytest.raises(UnknownNameError, match="class of the tiny world 'teapot'"):
        WORLD.class_name("teapot")
    with pytest.raises(InputError, match="expected none for tinyworld, which knows them"):
        WORLD.class_name("dog", ["cat"])


def test_a_world_of_another_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(ModelProfile):
        name = "elsewhere"
        concepts = ("teapot",)

    module = type(registry)("another_package")
    Elsewhere.__module__, module.Elsewhere = module.__name__, Elsewhere  # type: ignore[attr-defined]
    monkeypatch.setattr("erasure.profile.added_modules", lambda: (module,))
    assert profile_of("elsewhere").concepts == ("teapot",)
    assert profile_of("tinyworld") is WORLD
    assert profile_of("nowhere") is OTHER


def test_every_profile_has_its_file() -> None:
    configs = Path(__file__).parent.parent / "configs" / "profiles"
    assert {file.stem for file in configs.iterdir()} == {WORLD.name, TRANSFORMER.name, OTHER.name}


def test_the_transformer_is_of_the_same_world() -> None:
    assert TRANSFORMER.name == "tinyworld-flux"
    assert TRANSFORMER.concepts == WORLD.concepts
    assert TRANSFORMER.data.benchmark == WORLD.data.benchmark
    assert TRANSFORMER.judge() is WORLD.judge()
    assert TRANSFORMER.folder != WORLD.folder
