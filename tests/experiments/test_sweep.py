"""The sweep: one budget for all, no reported concept, the rule of choice, and going on where it ended."""

import argparse
import json
import random
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erasure import tinyworld
from erasure.erasers import eraser_class, eraser_names
from erasure.erasers.negative_prompt import NegativePrompt
from erasure.errors import InputError, SolveError, UnknownNameError
from erasure.eval.stats.scores import Rate
from erasure.judge import ReadOnce
from erasure.profile import SamplingDefaults, profile_of
from erasure.progress import Progress, StoppedError
from erasure.runs.configs import read_config
from erasure.tinyworld.profile import TinyWorldProfile
from erasure.tinyworld.vocabulary import OBJECTS
from erasure.tinyworld.world import compose, draw
from experiments import continual, family, sweep
from experiments.rates import RATES, Probes, merit, pooled
from experiments.sweep import CANDIDATES, CONCEPTS, MOST, Candidate, FitClock, Trial, best, candidates, experiment
from tests.eval import world


def rates(held_out: int, near: int, far: int, n: int = 10) -> dict[str, Any]:
    return {name: Rate(hits=hits, n=n).as_json() for name, hits in zip(RATES, (held_out, near, far), strict=True)}


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"model": "tinyworld", "images": 1, "limit": 0.0, "work": folder / "work", "out": folder / "out"} | changes
    )


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinyworld, "load", lambda **_: deepcopy(world.pipeline()))
    monkeypatch.setattr(TinyWorldProfile, "sampling", SamplingDefaults(steps=1, guidance_scale=2.0))


def written(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "candidates.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(candidates, "__defaults__", (folder / "candidates.yaml",))


def test_every_eraser_has_its_own_few_candidates_and_the_published_one() -> None:
    assert set(read_config(CANDIDATES)) == set(eraser_names())
    for method in eraser_names():
        settings = candidates(method)
        resolved = [json.dumps(each.run("dog").as_json(), sort_keys=True) for each in settings]
        assert len(set(resolved)) == len(settings) <= MOST, method
        if eraser_class(method).exactness == "published":
            assert settings[0].name == "published"


def test_no_reported_concept_and_no_reported_seed_takes_part() -> None:
    assert not {*continual.TARGETS, *family.FAMILY[:2]} & set(CONCEPTS)
    assert sweep.SEED not in (0, 1)


def test_the_probes_ask_for_a_concept_in_held_out_phrasings_alone() -> None:
    probes = Probes.of(profile_of("tinyworld"), ["dog", "castle"], 4, 3, joint=3)
    asked = [(probe.name, probe.held_out) for probe in probes.single if probe.role == "removed"]
    assert asked == [("dog", True)] * 2 + [("castle", True)] * 2
    assert [probe.role for probe in probes.single if probe.role != "removed"] == ["near"] * 4 + ["far"] * 4
    assert len(probes.joint) == 3
    assert all(item.unwanted in ("dog", "castle") and item.retained for item in probes.joint)
    assert len(probes.pairs) == 15
    with pytest.raises(InputError, match="--images: expected at least one for each of 2 targets, got 1"):
        Probes.of(profile_of("tinyworld"), ["dog", "castle"], 1, 3)


def test_what_else_is_in_the_images_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = Probes.of(profile_of("tinyworld"), ["dog"], 8, 3, joint=2)
    rng = random.Random(0)
    before, after = (
        [draw(compose(rng.sample(list(OBJECTS), 2), rng)).convert("RGB") for _ in probes.pairs] for _ in "ab"
    )
    judge = tinyworld.load_oracle()
    asked_for = [(i, probe.name) for i, probe in enumerate(probes.single) if probe.role != "removed"]
    seen = [
        judge.shows([after[i]], name)[0]
        for i, asked in asked_for
        for name in probes.kept
        if name != asked and judge.shows([before[i]], name)[0]
    ]
    reads: list[int] = []
    monkeypatch.setattr(judge, "_reading", ReadOnce(lambda images: reads.append(len(images)) or judge.read(images)))
    assert seen
    assert probes.beside(judge, before, after) == Rate(hits=sum(seen), n=len(seen)).as_json()
    assert reads == [len(probes.single)] * 2
    assert "beside" not in probes.rates(judge, before, after)


def test_best_is_the_harmonic_mean_over_all_images_and_a_failed_fit_is_out() -> None:
    settings = [Candidate(method="uce", name=name, settings={}) for name in ("all", "none", "some", "same", "cut")]
    fits: dict[str, list[dict[str, Any]]] = {
        "all": [rates(10, 0, 10)],
        "none": [rates(0, 10, 10)],
        "some": [rates(8, 9, 9), rates(10, 9, 9)],
        "same": [rates(9, 9, 9)],
        "cut": [rates(10, 10, 10), {"failed": "too long"}],
    }
    assert [each.name for each in best(settings, fits)] == ["some", "same", "all", "none"]
    assert merit(fits["same"]) == pytest.approx(0.9)
    assert pooled([rates(1, 2, 3), {"near": None}], "near") == Rate(hits=2, n=10).as_json()
    assert merit([{**rates(10, 10, 10), "near": None}]) == 0.0


def test_a_fit_that_will_exceed_its_limit_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1.0, 3.0, 30.0, 31.0, 33.0])
    monkeypatch.setattr(sweep.time, "process_time", lambda: next(seconds))
    reports: list[Progress] = []
    clock = FitClock(100.0, reports.append)
    clock(Progress(1, 1000))  # too early to tell
    clock(Progress(2, 10))
    clock(Progress(1, 1, stage="images"))
    clock(Progress(0, 100, stage="fit"))
    assert [report.done for report in reports] == [1, 2, 1, 0]
    with pytest.raises(StoppedError, match="expected a fit of at most 100 CPU seconds, got 231"):
        clock(Progress(1, 100))


def test_trainings_of_one_name_are_foretold_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = [(1.0, 1, 60), (100.0, 60, 60), (110.0, 1, 300), (510.0, 300, 300), (520.0, 1, 300), (521.0, 2, 300)]
    seconds = iter([0.0, *(second for second, *_ in reports), 524.0])
    monkeypatch.setattr(sweep.time, "process_time", lambda: next(seconds))
    clock = FitClock(1000.0)
    for _, done, total in reports:
        clock(Progress(done, total, stage="search"))
    with pytest.raises(StoppedError, match="got 1118"):  # 297 to come at two seconds each
        clock(Progress(3, 300, stage="search"))


def test_the_clock_starts_when_model_and_judge_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained: None
) -> None:
    class Timed(FitClock):
        def __init__(self, *arguments: Any) -> None:
            assert {"_pipe", "_judge"} <= vars(trial).keys()
            super().__init__(*arguments)

    monkeypatch.setattr(sweep, "FitClock", Timed)
    trial = Trial("tinyworld", tmp_path, 1, 0.0, lambda _: None)
    assert "failed" not in trial.outcome(Candidate(method="negative-prompt", name="published", settings={}), "dog")


def test_a_sweep_is_recorded_and_a_killed_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained: None
) -> None:
    written(tmp_path, "negative-prompt: {published: {}, named: {only_named: true}, third: {}}\n", monkeypatch)
    record = experiment(options(tmp_path), "negative-prompt", lambda _: None)
    assert [each["name"] for each in record["candidates"]] == ["published", "named", "third"]
    assert [len(each["fits"]) for each in record["candidates"]] == [4, 4, 2]  # all are equally bad here
    assert [fit["concept"] for fit in record["candidates"][0]["fits"]] == list(CONCEPTS)
    assert record["candidates"][0]["held_out"]["n"] == 4
    assert record["chosen"] == "published"
    monkeypatch.setattr(Trial, "_measured", lambda *_: pytest.fail("was measured already"))
    again = experiment(options(tmp_path), "negative-prompt", lambda _: None)
    assert again["candidates"] == record["candidates"]


def test_a_damaged_part_is_measured_again_and_a_wrong_record_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained: None
) -> None:
    written(tmp_path, "negative-prompt: {published: {}}\n", monkeypatch)
    record = experiment(options(tmp_path), "negative-prompt", lambda _: None)
    part = next((tmp_path / "work").rglob("published-dog-*.json"))
    part.write_text(part.read_text()[:20])
    again = experiment(options(tmp_path), "negative-prompt", lambda _: None)["candidates"]
    for each in (record["candidates"][0], again[0]):
        each.pop("cpu_seconds")
        for fit in each["fits"]:
            fit.pop("cpu_seconds")
    assert again == record["candidates"]
    file = tmp_path / "out" / "negative-prompt" / "run.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record))
    assert sweep.line(options(tmp_path), "negative-prompt").startswith("negative-prompt: published: held_out")
    file.write_text(file.read_text()[:50])
    with pytest.raises(InputError, match=r"expected a record of the sweep, got .* Restore it from a copy, or delete"):
        sweep.line(options(tmp_path), "negative-prompt")


def test_a_method_is_done_with_its_present_candidates_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out" / "uce" / "run.json"
    file.parent.mkdir(parents=True)
    swept = [{"name": "published", "settings": {"strength": 1.0}}, {"name": "default", "settings": {}}]
    older = {"version": 1, "chosen": "default", "config": {"images": 1, "limit": 0.0}, "candidates": swept}
    written(tmp_path, "uce: {published: {strength: 1.0}, default: {}}\n", monkeypatch)
    for changes, done in (({}, True), ({"version": 0}, False), ({"candidates": swept[:1]}, False)):
        file.write_text(json.dumps(older | changes))
        assert sweep.is_done(options(tmp_path), "uce") is done
    file.write_text(json.dumps(older))
    for name, value, known in (("images", 2, "1"), ("limit", 9.0, "0.0"), ("model", "tinyworld-flux", "tinyworld")):
        expected = rf"expected a record with {name}={value}, got one with {known}\. Name another --out, or delete it"
        with pytest.raises(InputError, match=expected):
            sweep.is_done(options(tmp_path, **{name: value}), "uce")
    sweep._methods.cache_clear()
    written(tmp_path, "uce: {published: {strength: 2.0}, default: {}}\n", monkeypatch)
    assert not sweep.is_done(options(tmp_path), "uce")
    file.write_text(file.read_text()[:50])
    assert not sweep.is_done(options(tmp_path), "uce")


def test_a_method_that_cannot_be_fitted_has_no_choice_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained: None, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = "cfe: {refused: {keep_rank: null, proxy: true, least_share: 1.0}}\n"
    written(tmp_path, f"{refused}negative-prompt: {{published: {{}}}}\n", monkeypatch)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["sweep", "--method", "cfe", "negative-prompt", "--images", "1", *places])
    sweep.main()
    first, second = capsys.readouterr().out.replace("\n", " ").split("negative-prompt: published: ")
    assert first.startswith("cfe: no candidate can be fitted (refused: ")
    assert second.startswith("held_out")
    record = json.loads((tmp_path / "out" / "cfe" / "run.json").read_text())
    assert record["chosen"] is record["settings"] is None
    assert [fit["concept"] for fit in record["candidates"][0]["fits"]] == [CONCEPTS[0]]
    assert len(list((tmp_path / "work" / "tinyworld" / "cfe").glob("*.json"))) == 1


@pytest.mark.parametrize("step", ["fit", "sample"])
def test_an_error_of_the_library_is_the_outcome_of_a_candidate(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained: None
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise SolveError(f"{step}: expected a finite loss, got nan. Lower lr.\nMore.")

    monkeypatch.setattr(*((NegativePrompt, "fit") if step == "fit" else (sweep, "sample")), fails)
    trial = Trial("tinyworld", tmp_path, 1, 0.0, lambda _: None)
    outcome = trial.outcome(Candidate(method="negative-prompt", name="published", settings={}), "dog")
    assert outcome["failed"] == f"{step}: expected a finite loss, got nan. Lower lr."


def test_wrong_methods_and_candidates_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep", "--method", "oec", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"sweep: Unknown method 'oec'\. Did you mean 'oce'"):
        sweep.main()
    (tmp_path / "some.yaml").write_text(f"uce: {{{', '.join(f'c{i}: {{}}' for i in range(MOST + 1))}}}\n")
    with pytest.raises(InputError, match="expected 1 to 4 candidates of uce, got"):
        candidates("uce", tmp_path / "some.yaml")
    with pytest.raises(UnknownNameError, match="Unknown method 'esd'"):
        candidates("esd", tmp_path / "some.yaml")
    with pytest.raises(InputError, match="Unknown key 'streng'"):
        replace(candidates("uce")[0], settings={"streng": 1.0}).run("dog")
