"""An attack's record: its controls, its rates, going on where it ended, and its page."""

import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.errors import InputError, UnknownNameError
from erasure.eval.attacks import attack_class
from erasure.eval.protocols.red_team import (
    ATTACKED,
    ORIGINAL,
    PLAIN,
    ROWS,
    AttackedPrompt,
    AttackRun,
    Attempts,
    attack_prompts,
)
from erasure.eval.protocols.sources import attack_of
from erasure.eval.protocols.variants import ERASED, Variant
from erasure.eval.reports.red_team_report import render, terminal_table, write_attack_report
from erasure.progress import Progress
from erasure.sampling import SamplingSettings, sample_pairs
from tests.tiny import sd1, text_weights

CAT = Concept(target="cat", kind="unsafe")
PROMPTS = [(CAT, "a cat", 1000), (CAT, "a photo of a cat", 2000), (CAT, "one cat", 3000)]


class Bright:
    """A judge that takes the brighter images for any concept."""

    name = "brightness"

    def __init__(self, above: float = 0.0) -> None:
        self.above, self.looked = above, 0

    def knows(self, concept: str) -> bool:
        return True

    def probabilities(self, images: Sequence[Image], concept: str) -> torch.Tensor:
        return self.features(images)[:, 0] / 255

    def shows(self, images: Sequence[Image], concept: str) -> list[bool]:
        self.looked += len(images)
        return [bool(np.asarray(image).mean() > self.above) for image in images]

    def features(self, images: Sequence[Image]) -> torch.Tensor:
        return torch.tensor([[np.asarray(image).mean()] for image in images])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))


def assault(folder: Path, pipe: Any, *, judge: Any = None, name: str = "mma", **changes: Any) -> AttackRun:
    settings: dict[str, dict[str, Any]] = {
        "mma": {"tokens": 4, "rounds": 2, "candidates": 4, "top": 4},
        "unlearn-diff": {"tokens": 2, "rounds": 2, "timesteps": 1},
    }
    given: dict[str, Any] = {
        "folder": folder,
        "erased": Variant(name=ERASED, pipe=pipe, about="nothing is changed", edit="abc"),
        "concepts": (CAT,),
        "attack": attack_class(name)(**settings[name]),
        "sampler": SamplingSettings(steps=1, guidance_scale=2.0),
        "budget": 6,
        "judge": judge or Bright(),
        "second": Bright(300.0),
        "model": "tiny",
    }
    return AttackRun(**given | changes)


def test_success_stops_the_tries_and_is_put_to_the_second_judge(tmp_path: Path) -> None:
    found = assault(tmp_path, sd1())
    found.run(PROMPTS)
    for each in found.attacked:
        assert each.rows == dict.fromkeys(ROWS, Attempts(first=1, sampled=1, confirmed=False))
    assert [rate.value for rate in found.rates(ATTACKED)] == [1.0] * 6
    agreed = found.confirmed(ATTACKED)
    assert agreed is not None
    assert (agreed.hits, agreed.n) == (0, 3)


def test_without_success_every_row_gets_the_whole_budget(tmp_path: Path) -> None:
    judge = Bright(300.0)
    found = assault(tmp_path, sd1(), judge=judge)
    found.run(PROMPTS[:1])
    assert found.attacked[0].rows == dict.fromkeys(ROWS, Attempts(first=None, sampled=6, confirmed=None))
    assert judge.looked == 3 * 6
    assert found.confirmed(ATTACKED) is None
    assert all(found.image(0, row).is_file() for row in ROWS)


@pytest.mark.parametrize("name", ["mma", "unlearn-diff"])
def test_the_attack_on_an_unchanged_model_is_the_attack_on_the_original(name: str, tmp_path: Path) -> None:
    pipe = sd1()
    probe = assault(tmp_path / "probe", pipe, name=name)
    middle = float(
        np.mean([np.asarray(image).mean() for image in sample_pairs(pipe, [("x", s) for s in range(8)], probe.sampler)])
    )
    found = assault(tmp_path / "one", pipe, name=name, judge=Bright(middle))
    found.run(PROMPTS[:2])
    for each in found.attacked:
        assert each.rows[ATTACKED] == each.rows[ORIGINAL]


def test_a_white_box_attack_looks_at_what_is_in_force(tmp_path: Path) -> None:
    pipe, inside = sd1(), []

    @contextmanager
    def applied() -> Any:
        inside.append("in")
        weight = next(iter(text_weights(backbone_of(pipe)).values()))
        before = weight.data
        weight.data = before * 0
        yield
        weight.data = before

    row = Variant(name=ERASED, pipe=pipe, about="deaf", applied=applied, edit="deaf")
    assault(tmp_path / "white", pipe, name="unlearn-diff", erased=row).run(PROMPTS[:1])
    assert len(inside) == 3  # the search, its pictures, the plain prompt's pictures
    inside.clear()
    assault(tmp_path / "black", pipe, erased=row).run(PROMPTS[:1])
    assert len(inside) == 2


def test_it_goes_on_where_it_ended_and_refuses_what_is_not_the_same(tmp_path: Path) -> None:
    pipe = sd1()
    first = assault(tmp_path, pipe)
    first.run(PROMPTS[:2])
    kept = json.loads((tmp_path / "attack.json").read_text())["found"]
    judge = Bright()
    again = assault(tmp_path, pipe, judge=judge)
    steps: list[Progress] = []
    again.run(PROMPTS, steps.append)
    assert json.loads((tmp_path / "attack.json").read_text())["found"][:2] == kept
    assert judge.looked == 3 * 4  # one prompt only, a batch a row
    assert [step.done for step in steps if step.stage == "prompts"] == [2, 3]  # where it starts, then the new one
    assert again.attacked == [
        AttackedPrompt.from_json(each) for each in json.loads((tmp_path / "attack.json").read_text())["found"]
    ]
    with pytest.raises(InputError, match="expected an attack with the same budget, got another"):
        assault(tmp_path, pipe, budget=7).run(PROMPTS)
    (tmp_path / "attack.json").write_text("{")
    with pytest.raises(InputError, match="expected an attack's record, got something else"):
        assault(tmp_path, pipe).run(PROMPTS)


def test_what_needs_the_text_encoder_alone_is_searched_for_once(tmp_path: Path) -> None:
    pipe = sd1()
    assault(tmp_path / "one", pipe).run(PROMPTS[:1])
    searches: list[Progress] = []
    assault(tmp_path / "two", pipe).run(PROMPTS[:1], searches.append)
    assert not [step for step in searches if step.stage.startswith("mma")]


def test_rates_count_successes_within_so_many_pictures(tmp_path: Path) -> None:
    found = assault(tmp_path, sd1())
    firsts = (1, 3, None, 6)
    found.attacked = [
        AttackedPrompt(
            concept="cat",
            prompt="a cat",
            seed=0,
            text="x",
            ids=((1,),),
            rows=dict.fromkeys(
                ROWS, Attempts(first=first, sampled=first or 6, confirmed=None if first is None else True)
            ),
        )
        for first in firsts
    ]
    assert [rate.value for rate in found.rates(PLAIN)] == [0.25, 0.25, 0.5, 0.5, 0.5, 0.75]
    assert terminal_table(found).row_count == 3


def test_the_page_shows_every_prompt_and_needs_no_network(tmp_path: Path) -> None:
    found = assault(tmp_path, sd1())
    found.run([(CAT, "a cat <b>", 1000)])
    page = write_attack_report(found, "tiny & small").read_text()
    assert page == render(found, "tiny & small")
    assert "a cat &lt;b&gt;" in page
    assert "tiny &amp; small" in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("http-equiv", "")


def test_goals_take_turns_with_seeds_of_their_own() -> None:
    gun, knife = Concept(target="gun", kind="unsafe"), Concept(target="knife", kind="unsafe", aliases=("dagger",))
    of_world = attack_prompts([gun, knife], 8, model="tinyworld")
    assert [concept.target for concept, _, _ in of_world] == ["gun", "knife"] * 4
    assert all(concept.target in prompt for concept, prompt, _ in of_world)
    assert len({seed for _, _, seed in of_world}) == 8
    elsewhere = attack_prompts([knife], 4, model="some/model")
    assert {"knife", "dagger"} == {word for _, prompt, _ in elsewhere for word in ("knife", "dagger") if word in prompt}


def test_settings_of_an_attack_are_checked() -> None:
    assert attack_of("mma", ["tokens=8"]).tokens == 8  # type: ignore[attr-defined]
    with pytest.raises(UnknownNameError, match=r"Unknown mma setting 'token'\. Did you mean 'tokens'"):
        attack_of("mma", ["token=8"])
    with pytest.raises(InputError, match=r"--set tokens: .* got 'many'"):
        attack_of("mma", ["tokens=many"])
