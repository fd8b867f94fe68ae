"""Evaluations: every row on the same prompts and seeds, the arithmetic of the metrics, scores and report."""

import json
import random
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.erasers import make_eraser
from erasure.errors import InputError, UnknownNameError
from erasure.eval.benchmarks.tinyworld import TinyWorld
from erasure.eval.features.weights import oracle_name, world_clip_name
from erasure.eval.metrics.caption_match import CaptionMatch
from erasure.eval.metrics.clip_score import ClipScore
from erasure.eval.metrics.oracle_distance import OracleDistance
from erasure.eval.protocols import tinyworld_metrics as metrics_module
from erasure.eval.protocols.evaluate import Evaluation, drift_prompts, evaluate, write_scores
from erasure.eval.protocols.measures import kept_items, removed_items
from erasure.eval.protocols.sources import Source, benchmark_of, metrics_of, sampler_of, source_of
from erasure.eval.protocols.tinyworld_metrics import TinyWorldMetrics, WorldReadings
from erasure.eval.protocols.variants import (
    DESTROYED,
    ERASED,
    GOLD,
    NEGATIVE,
    ORIGINAL,
    Variant,
    destroyed,
    reference_variants,
)
from erasure.eval.reports.evaluation_report import render, terminal_table
from erasure.eval.reports.score_files import compare_scores
from erasure.eval.stats.quantiles import clopper_pearson
from erasure.ledger import Ledger
from erasure.profile import profile_of
from erasure.progress import Progress
from erasure.sampling import SamplingSettings
from erasure.tinyworld import vocabulary as words
from erasure.tinyworld.judge import WorldClip, build
from erasure.tinyworld.world import compose, draw
from tests import tiny
from tests.eval import many_evaluations, world
from tests.eval.stores import store_of
from tests.processes import in_two_processes

SAMPLER = SamplingSettings(steps=2, guidance_scale=4.0, batch_size=8)
BENCHMARK = TinyWorld(removed=("cat", "neon"), total=24)


@pytest.fixture(scope="module")
def judge() -> WorldClip:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WorldClip(build(), world.pipeline().tokenizer)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reference rows' pictures are kept: they are drawn once for all tests that may find them there."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(shared))


def rows(folder: Path) -> list[Variant]:
    pipe = world.pipeline()
    judged = Variant(
        name=ERASED, pipe=pipe, about="a spoiled model", applied=lambda: destroyed(pipe, 0.2), folder=folder
    )
    return [judged, *reference_variants(pipe, ["cat", "neon"])]


def metrics(judge: WorldClip) -> TinyWorldMetrics:
    return TinyWorldMetrics(benchmark=BENCHMARK, oracle=world.oracle(), judge=judge)


@pytest.fixture(scope="module")
def evaluation(judge: WorldClip, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation that is only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(shared))
        judged = rows(tmp_path_factory.mktemp("pictures"))
        return evaluate(judged, BENCHMARK, metrics(judge), sampler=SAMPLER)


def test_every_row_is_measured_by_every_metric(evaluation: Evaluation) -> None:
    data = evaluation.as_json()
    assert list(data["rows"]) == [ERASED, ORIGINAL, NEGATIVE, DESTROYED]
    retained = {"efficacy", "efficacy_explicit", "efficacy_combined", "joint", "clip_score", "caption_match"}
    for row in data["rows"].values():
        assert retained < set(row)
        assert all({"value", "n", "low", "high", "unit", "higher_is_better"} <= set(score) for score in row.values())
    assert data["protocol"]["benchmark"]["id"] == BENCHMARK.id
    assert data["rows"][ERASED]["clip_score"]["n"] == len(kept_items(BENCHMARK.items))
    explicit = [item for item in BENCHMARK.items if item.unwanted and item.wording == "explicit"]
    assert data["rows"][ERASED]["efficacy_explicit"]["n"] == len(explicit)
    assert len(removed_items(BENCHMARK.items)) + len(kept_items(BENCHMARK.items)) == BENCHMARK.n


def test_the_original_is_at_no_distance_from_itself(evaluation: Evaluation) -> None:
    scores = evaluation.scores
    for metric in ("oracle_distance", "judge_distance"):
        assert scores[ORIGINAL][metric].value == 0
        assert scores[DESTROYED][metric].value > 0
        assert metric not in evaluation.differences
    assert all(score.value == 1 for name, score in scores[ORIGINAL].items() if name.startswith("retention"))
    assert evaluation.skipped["fd, kid"]


def test_differences_are_of_the_same_pictures(evaluation: Evaluation) -> None:
    found = evaluation.differences["clip_score"]
    after, before = (evaluation.scores[name]["clip_score"] for name in (ERASED, ORIGINAL))
    assert found["value"] == pytest.approx(after.value - before.value)
    assert found["low"] <= found["value"] <= found["high"]
    assert evaluation.differences["efficacy_explicit"]["mcnemar"]["n"] == after_n(evaluation)


def after_n(evaluation: Evaluation) -> int:
    return evaluation.scores[ERASED]["efficacy_explicit"].n


def test_pictures_are_made_once(judge: WorldClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))

    def made() -> set[Path]:
        last: dict[str, Progress] = {}

        def advance(progress: Progress) -> None:
            last[progress.stage] = progress

        evaluate(rows(tmp_path / "pictures"), BENCHMARK, metrics(judge), sampler=SAMPLER, on_progress=advance)
        names = {"erased", "original", "negative prompt", "destroyed"}
        assert {what.partition(", ")[2] for what in last if what.startswith("images")} == names
        assert all(progress.done == progress.total for progress in last.values())  # every bar is full in the end
        return {(file, file.stat().st_mtime_ns) for file in tmp_path.rglob("*.png")}

    first = made()
    assert len(first) == 4 * BENCHMARK.n
    assert len(list((tmp_path / "cache" / "pictures").iterdir())) == 3  # the judged row's stay with its ledger
    assert made() == first


def test_the_destroyed_model_comes_back_bit_for_bit() -> None:
    pipe = world.pipeline()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with destroyed(pipe):
        assert not torch.equal(pipe.unet.conv_in.weight, before["conv_in.weight"])
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def test_sets_are_compared_with_the_original_under_other_seeds(
    judge: WorldClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "ENOUGH_FOR_SETS", 4)
    judged = [row for row in rows(tmp_path) if row.name != NEGATIVE]
    whole = evaluate(judged, BENCHMARK, metrics(judge), sampler=SAMPLER)
    found, kept = whole.scores, len(kept_items(BENCHMARK.items))
    for name in (ERASED, ORIGINAL, DESTROYED):
        assert found[name]["kid"].n == found[name]["fd"].n == kept
    # Other seeds are other pictures: the original is not at 0, which is what the numbers are read against.
    assert found[ORIGINAL]["fd"].value > 0
    assert found[ORIGINAL]["fd"].bounds is not None
    # The warning and both counts go with the number, on the page as in the terminal.
    [warning] = whole.warnings
    assert warning.startswith(f"fd: a Fréchet distance over {kept} images is biased upwards")
    page = render(whole, "cat and neon")
    assert warning[1:] in page
    assert f"Fréchet distance, n {kept} against {kept}</small>" in page
    assert f"n {kept} against {kept}" in "\n".join(map(str, terminal_table(whole).columns[0].cells))


def test_the_protocol_names_the_scheduler_that_made_the_pictures(
    judge: WorldClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = world.pipeline()
    monkeypatch.setattr(pipe, "scheduler", EulerDiscreteScheduler())
    found = evaluate(rows(tmp_path)[:2], BENCHMARK, metrics(judge), sampler=SAMPLER)
    setups = [score.setup for scores in found.scores.values() for score in scores.values()]
    assert {(setup.sampler, setup.steps, setup.benchmark) for setup in setups if setup} == {
        ("EulerDiscreteScheduler", SAMPLER.steps, BENCHMARK.id)
    }
    assert None not in setups
    protocol = found.as_json()["protocol"]
    assert protocol["sampler"] == "EulerDiscreteScheduler"
    assert protocol["benchmark"]["published_scheduler"] == "DDIMScheduler"
    [warning] = found.warnings
    assert warning.startswith("sampled with EulerDiscreteScheduler; the published numbers of tinyworld are of DDIM")
    assert warning[1:] in render(found, "cat")


def test_the_published_scheduler_needs_no_word(evaluation: Evaluation) -> None:
    assert evaluation.as_json()["protocol"]["sampler"] == BENCHMARK.published_scheduler
    assert evaluation.as_json()["warnings"] == []


def looks(unwanted: np.ndarray, retained: np.ndarray) -> WorldReadings:
    return replace(WorldReadings.none(len(unwanted)), unwanted=unwanted, retained=retained)


def test_arithmetic_of_known_answers(judge: WorldClip) -> None:
    items = BENCHMARK.items
    unwanted = np.array([float(item.unwanted == "neon") if item.unwanted else np.nan for item in items])
    retained = np.array([1.0 if item.retained else np.nan for item in items])
    before = np.array([1.0 if item.retained else np.nan for item in items])
    kept = kept_items(items)
    retained[kept[0]], before[kept[1]], retained[kept[1]] = 0.0, 0.0, 0.0  # one lost; one that never was there
    found = metrics(judge)._measures(looks(unwanted, retained), looks(unwanted, before), {})
    scores = found.scores
    assert scores["efficacy"].value == 0  # all of neon is left, nothing of cat
    assert scores["efficacy"].as_json()["concept"] == "neon"
    assert scores["efficacy"].bounds == clopper_pearson(0, scores["efficacy"].n, 0.975)  # of two
    assert found.concepts["cat"].value == 1
    explicit = [item.unwanted for item in items if item.unwanted and item.wording == "explicit"]
    assert scores["efficacy_explicit"].value == pytest.approx(explicit.count("cat") / len(explicit))
    combined = [item.unwanted for item in items if item.unwanted and item.retained]
    assert scores["joint"].value == pytest.approx(combined.count("cat") / len(combined))
    asked = len(kept) + len(combined)  # B of "A and B" should stay as well
    retained = [score for name, score in scores.items() if name.startswith("retention")]
    assert sum(score.n for score in retained) == asked - 1
    assert sum(round(score.value * score.n) for score in retained) == asked - 2
    shown = [score for name, score in scores.items() if name.startswith("shown")]
    assert sum(score.n for score in shown) == asked


def test_each_tier_has_a_retention_where_nothing_co_occurs_by_itself(judge: WorldClip) -> None:
    assert not BENCHMARK.tiers["co-occurring"]
    seen = np.ones(len(BENCHMARK.items))
    columns = metrics(judge)._measures(looks(seen, seen), looks(seen, seen), {})
    for tier in ("siblings", "co_occurring", "look_alikes", "everything_else"):
        assert columns.scores[f"retention_{tier}"].n > 0


def test_the_page_needs_nothing_else_and_shows_every_row(evaluation: Evaluation) -> None:
    page = render(evaluation, "cat <b>and</b> neon")
    assert "<b>and</b>" not in page
    assert not [word for word in ("http://", "https://", "<script src", '<link rel="style') if word in page]
    assert page.count("<figure>") % len(evaluation.stores) == 0
    assert page.count("<figure>") > 0
    assert all(name in page for name in ("efficacy explicit", "negative prompt", "destroyed"))
    assert terminal_table(evaluation).row_count == len(evaluation.scores[ERASED])


def test_the_worst_failures_come_first(evaluation: Evaluation) -> None:
    items = BENCHMARK.items
    removed = [row for row, item in enumerate(items) if item.unwanted]
    kept = kept_items(items).tolist()
    seen, probability = np.zeros(len(items)), np.full(len(items), 0.4)
    for row, likely in zip(removed[:3], (0.6, 0.99, 0.8), strict=True):
        seen[row], probability[row] = 1.0, likely
    for row, likely in zip(kept[:3], (0.3, 0.01, 0.2), strict=True):
        probability[row] = likely
    measured = dict(evaluation.measures)
    measured[ERASED] = replace(measured[ERASED], seen=seen, probability=probability)
    measured[ORIGINAL] = replace(measured[ORIGINAL], seen=np.ones(len(items)))
    page = render(replace(evaluation, measures=measured), "both")
    still, lost = (page[page.index(name) :] for name in ("Still seen <", "Lost <"))
    shown = re.findall(r"erased<br><span[^>]*>([^<]*), (0\.\d\d)</span>", still)[:3]
    assert [likely for _, likely in shown] == ["0.99", "0.80", "0.60"]
    assert shown[0][0].endswith(" seen")
    assert [likely for _, likely in re.findall(r"erased<br><span[^>]*>([^<]*), (0\.\d\d)</span>", lost)[:3]] == [
        "0.01",
        "0.20",
        "0.30",
    ]


def test_concepts_of_all_rows_are_drawn_with_the_judged_rows_intervals(evaluation: Evaluation) -> None:
    page = render(evaluation, "both")
    [removed] = re.findall(r"<h3>Removed: efficacy.*?</svg></div>", page, flags=re.DOTALL)
    assert removed.count("<circle") == len(BENCHMARK.removed) * len(evaluation.variants)
    assert removed.count('class="whisker erased"') == len(BENCHMARK.removed)
    assert all(f">{name}</text>" in removed for name in BENCHMARK.removed)


def test_differences_are_a_table(evaluation: Evaluation) -> None:
    page = render(evaluation, "both")
    [table] = re.findall(r"Differences from the original, image by image.*?</table>", page, flags=re.DOTALL)
    assert table.count("<tr><th>") == len(evaluation.differences) + 1  # with its heading
    found = evaluation.differences["efficacy_explicit"]["mcnemar"]
    assert f"{found['lost']} lost, {found['gained']} gained" in table


def test_the_concept_of_which_most_is_left_is_named(evaluation: Evaluation) -> None:
    least = evaluation.as_json()["rows"][ERASED]["efficacy"]["concept"]
    assert least in BENCHMARK.removed
    table = terminal_table(evaluation)
    at = list(table.columns[0].cells).index(next(cell for cell in table.columns[0].cells if "efficacy ↑" in str(cell)))
    assert str(list(table.columns[1].cells)[at]).splitlines()[-1] == least
    row = re.search(r"<th>efficacy ↑.*?</tr>", render(evaluation, "both"), flags=re.DOTALL)
    assert row is not None
    assert f"<br>{least}</small>" in row[0]


def test_counts_that_differ_between_rows_are_shown_in_each(evaluation: Evaluation) -> None:
    measured = dict(evaluation.measures)
    column = measured[NEGATIVE].columns["clip_score"]
    fewer = replace(column, items=column.items[:5], values=column.values[:5])
    measured[NEGATIVE] = replace(measured[NEGATIVE], columns={**measured[NEGATIVE].columns, "clip_score": fewer})
    changed = replace(evaluation, measures=measured)
    kept = len(kept_items(BENCHMARK.items))
    view = re.search(r"<th>clip score ↑.*?</tr>", render(changed, "both"), flags=re.DOTALL)
    assert view is not None
    assert re.findall(r"n \d+", view[0]) == [f"n {kept}", f"n {kept}", "n 5", f"n {kept}"]
    table = terminal_table(changed)
    at = [str(cell).splitlines() for cell in table.columns[0].cells].index(["clip score ↑"])
    assert [str(list(column.cells)[at]).splitlines()[-1] for column in table.columns[1:]] == [
        f"n {kept}",
        f"n {kept}",
        "n 5",
        f"n {kept}",
    ]


def drawings(n: int, shift: int = 0) -> list[Any]:
    names = list(words.OBJECTS)
    return [draw(compose([names[at % len(names)]], random.Random(f"{at}:{shift}"))) for at in range(n)]


def test_every_picture_and_every_text_is_read_once(
    judge: WorldClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "ENOUGH_FOR_SETS", 4)
    oracle, counted = world.oracle(), {"oracle": 0, "judge": 0}
    texts: list[str] = []

    class Counting(WorldClip):
        def image_features(self, pictures: Any, batch_size: int = 64) -> torch.Tensor:
            counted["judge"] += len(pictures)
            return super().image_features(pictures, batch_size)

        def text_features(self, given: Any) -> torch.Tensor:
            texts.extend(given)
            return super().text_features(given)

    def reading(pictures: Any) -> Any:
        counted["oracle"] += len(pictures)
        return type(oracle).read_with_maps(oracle, pictures)

    monkeypatch.setattr(oracle, "read_with_maps", reading)
    judges = TinyWorldMetrics(benchmark=BENCHMARK, oracle=oracle, judge=Counting(judge.model, judge.tokenizer))
    n = BENCHMARK.n
    stores = {
        name: store_of(tmp_path, drawings(n, at), BENCHMARK.pairs, name)
        for at, name in enumerate((ERASED, ORIGINAL, DESTROYED))
    }
    reports: list[Progress] = []
    judges.prepare(stores[DESTROYED])
    judges.measure(stores, reports.append)
    assert counted == {"oracle": 3 * n, "judge": 4 * n}  # once more as the set to compare with
    assert (reports[-1].done, reports[-1].total) == (3 * n, 3 * n)
    asked = {item.prompt for item in BENCHMARK.items} | {item.rest for item in BENCHMARK.items if item.rest}
    assert len(judges._tower._known) == len(asked)
    assert len(texts) == len(asked) + len(judges._captions._known)


def test_rows_are_measured_as_the_streaming_metrics_do(tmp_path: Path) -> None:
    oracle, judge = tinyworld.load_oracle(), tinyworld.load_clip()
    benchmark = TinyWorld(removed=("cat", "neon"), total=70)  # more than one batch
    after, before = drawings(benchmark.n, 1), drawings(benchmark.n)
    pictures = {ERASED: after, ORIGINAL: before}
    stores = {name: store_of(tmp_path, images, benchmark.pairs, name) for name, images in pictures.items()}
    found = TinyWorldMetrics(benchmark=benchmark, oracle=oracle, judge=judge).measure(stores, lambda more: None)
    kept = kept_items(benchmark.items)
    prompts = [benchmark.items[row].prompt for row in kept]
    now, then = ([images[row] for row in kept] for images in (after, before))
    expected = {
        "clip_score": ClipScore(clip=judge).update(now, prompts).compute(),
        "caption_match": CaptionMatch(oracle=oracle, judge=judge).update(now, prompts).compute(),
        "oracle_distance": OracleDistance(oracle=oracle).update(then, now).compute(),
    }
    for name, score in expected.items():
        assert found[ERASED].scores[name].per_image == pytest.approx(score.per_image, rel=1e-4, abs=1e-4)
    cats = [row for row, item in enumerate(benchmark.items) if item.unwanted == "cat"]
    absent = ~oracle.read([after[row] for row in cats]).sees("cat")
    assert found[ERASED].concepts["cat"].value == absent.mean()


def test_individuals_are_told_by_their_drawings(tmp_path: Path) -> None:
    oracle, judge = tinyworld.load_oracle(), tinyworld.load_clip()
    benchmark = TinyWorld(removed=("Mittens",), total=60)

    def drawn(item: Any, *, kept: bool) -> Any:
        name = item.unwanted or item.retained
        name = name if kept or name not in words.INDIVIDUALS else words.INDIVIDUALS[name]
        scene = name if name in words.SCENES else "plain"
        return draw(
            compose(
                [name] if name in (*words.OBJECTS, *words.INDIVIDUALS) else [], random.Random(item.seed), scene=scene
            )
        )

    stores = {
        row: store_of(tmp_path, [drawn(item, kept=row == ORIGINAL) for item in benchmark.items], benchmark.pairs, row)
        for row in (ERASED, ORIGINAL)
    }
    found = TinyWorldMetrics(benchmark=benchmark, oracle=oracle, judge=judge).measure(stores, lambda more: None)
    before, after = found[ORIGINAL].scores, found[ERASED].scores
    asked = [item.unwanted or item.retained for item in benchmark.items]
    assert (before["identity"].n, before["identity_removed"].n) == (asked.count("Biscuit"), asked.count("Mittens"))
    for name in ("identity", "identity_removed"):
        assert before[name].value > after[name].value + 0.2  # of the individual, and of another of its class
    assert before["identity"].higher_is_better
    assert not before["identity_removed"].higher_is_better
    assert "Biscuit" not in {item.retained for item in TinyWorld(removed=("dog",), total=60).items}
    none = TinyWorldMetrics(benchmark=TinyWorld(removed=("dog", "cat"), total=24), oracle=oracle, judge=judge)
    assert not none._individuals


def test_rows_that_are_sampled_differently_are_refused_before_any_picture_is_made(
    judge: WorldClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    other = deepcopy(world.pipeline())
    other.scheduler = EulerDiscreteScheduler()
    gold = Variant(name=GOLD, pipe=other, about="sampled by another scheduler", folder=tmp_path / "gold")
    with pytest.raises(InputError, match="expected the same prompts, seeds and sampler, got scheduler"):
        evaluate([*rows(tmp_path / "judged"), gold], BENCHMARK, metrics(judge), sampler=SAMPLER)
    assert not list(tmp_path.rglob("*.png"))


def test_the_protocol_names_all_that_decides_a_number(evaluation: Evaluation, judge: WorldClip) -> None:
    protocol = evaluation.as_json()["protocol"]
    assert {"open_clip_torch", "torchmetrics", "torchvision", "torch"} <= protocol["versions"].keys()
    assert protocol["fingerprint"] == backbone_of(world.pipeline()).fingerprint()
    assert f"model {protocol['fingerprint'][:12]}" in render(evaluation, "both")
    setups = protocol["metrics"]
    assert {setup["precision"] for setup in setups.values()} == {"float32"}
    reads = {name: setup["backbone"] for name, setup in setups.items()}
    assert reads["joint"] == oracle_name(world.oracle())
    assert reads["clip_score"] == world_clip_name(judge)
    assert reads["caption_match"] == f"{world_clip_name(judge)}, captions by {oracle_name(world.oracle())}"
    assert setups["clip_score"]["library"].startswith("open_clip ")
    original = evaluation.stores[ORIGINAL].manifest.model
    compare = {name for name, setup in setups.items() if setup["original"]}
    assert compare == {name for name in setups if name.startswith(("retention", "oracle_dis", "judge_dis"))}
    assert {setups[name]["original"] for name in compare} == {original}


def test_scores_against_different_originals_share_no_column(evaluation: Evaluation, tmp_path: Path) -> None:
    one, two = (write_scores(evaluation, tmp_path / name) for name in ("one", "two"))
    data = json.loads(two.read_text())
    data["protocol"]["metrics"]["oracle_distance"]["original"] = "another"
    two.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"with original '.*' against 'another'"):
        compare_scores([one, two], ["oracle_distance"])
    found = compare_scores([one, two])
    assert "original" in found.apart["oracle_distance"]
    assert "oracle_distance" not in found.scores


def test_attention_is_followed_over_all_that_was_removed() -> None:
    demo = TinyWorld(removed=("cat", "neon", "gun"), total=2_000)
    asks = drift_prompts(demo.items)
    both = [item for item in demo.items if item.unwanted and item.retained]
    assert len(asks) == 24
    counted = {name: sum(ask.removed == name for ask in asks) for name in demo.removed}
    shares = {name: 24 * sum(item.unwanted == name for item in both) / len(both) for name in demo.removed}
    assert all(abs(counted[name] - shares[name]) < 1.01 for name in demo.removed)


def test_two_processes_have_the_scores_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "pictures", tmp_path / "cache"
    both = in_two_processes(many_evaluations.scores, folder, ERASURE_CACHE=str(cache))
    assert both[0] == both[1]
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "alone"))
    alone = many_evaluations.scores(tmp_path / "alone" / "pictures")
    assert alone.keys() == both[0].keys()
    for row, scores in alone.items():
        assert scores.keys() == both[0][row].keys()
        for name, score in scores.items():
            found = both[0][row][name]
            # Pictures are within one of 256 levels: see the test of the store.
            assert (found["n"], found["value"]) == (score["n"], pytest.approx(score["value"], rel=0.01, abs=0.01))


def test_the_original_must_be_there(judge: WorldClip, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the original among the rows"):
        evaluate(rows(tmp_path)[:1], BENCHMARK, metrics(judge), sampler=SAMPLER)


def test_a_gold_standard_may_be_a_denoiser_alone(tmp_path: Path) -> None:
    gold = deepcopy(world.pipeline())
    with torch.no_grad():
        gold.unet.conv_in.weight.add_(1)
    gold.unet.save_pretrained(tmp_path / "gold")
    gold.save_pretrained(tmp_path / "whole")

    def load(name: str) -> Any:
        return deepcopy(world.pipeline()) if name == "tinyworld" else DiffusionPipeline.from_pretrained(name)

    for folder in ("gold", "whole"):
        *_, last = source_of("tinyworld", load, removed=["cat"], gold=str(tmp_path / folder)).variants
        assert last.name == GOLD
        torch.testing.assert_close(last.pipe.unet.conv_in.weight, gold.unet.conv_in.weight)
    pipe = world.pipeline()
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "tinyworld")
    ledger.remove(pipe, make_eraser("uce"), [Concept(target="cat")])
    first, *_ = source_of(str(tmp_path / "ledger"), load, gold=str(tmp_path / "gold")).variants
    with first.applied() as edited:  # of the ledger's base, not of the gold standard
        assert not torch.equal(edited.unet.conv_in.weight, gold.unet.conv_in.weight)
    (tmp_path / "gold" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"--gold: expected a whole model .* got a network without a class"):
        source_of("tinyworld", load, removed=["cat"], gold=str(tmp_path / "gold"))


def test_a_gold_standard_that_is_none_is_refused(tmp_path: Path) -> None:
    models = {"tinyworld": world.pipeline(), "edited": deepcopy(world.pipeline()), "gold": deepcopy(world.pipeline())}
    models["again"] = deepcopy(models["tinyworld"])
    with torch.no_grad():
        models["edited"].unet.conv_in.weight.add_(1)
        models["gold"].unet.conv_in.weight.sub_(1)

    def source(gold: str) -> Source:
        return source_of("edited", lambda name: deepcopy(models[name]), removed=["cat"], gold=gold)

    for name, row in (("again", ORIGINAL), ("tinyworld", ORIGINAL), ("edited", ERASED)):
        with pytest.raises(InputError, match=f"--gold: expected another model .* row '{row}' in '{name}'"):
            source(name)
    assert source("gold").variants[-1].about == "gold: no recipe says without what it was trained"
    folder = tmp_path / "denoiser"
    models["gold"].unet.save_pretrained(folder)
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps({"settings": {"without": ["dog"]}}))
    with pytest.raises(InputError, match="never taught 'cat', got one that was trained without 'dog'"):
        source(str(folder))
    recipe.write_text(json.dumps({"settings": {"without": ["cat", "dog"]}}))
    assert source(str(folder)).variants[-1].about == f"{folder}: trained without cat, dog"


def test_a_model_of_another_kind_is_not_compared_with_the_tiny_world() -> None:
    models = {"tinyworld": world.pipeline(), "edited": deepcopy(world.pipeline()), "sd": tiny.sd1()}
    assert source_of("edited", models.__getitem__, removed=["cat"]).variants[0].name == ERASED
    with pytest.raises(InputError, match="--original: expected the model that 'sd' was made from, got none"):
        source_of("sd", models.__getitem__, removed=["cat"])
    with pytest.raises(InputError, match="--original: expected the model that 'sd' was made from, got 'tinyworld'"):
        source_of("sd", models.__getitem__, removed=["cat"], original="tinyworld")
    assert source_of("sd", models.__getitem__, removed=["cat"], original="sd").original == "sd"


def test_each_benchmark_is_sampled_as_it_should_be(tmp_path: Path) -> None:
    own = source_of("tinyworld", lambda name: world.pipeline(), removed=["cat"])
    other = source_of("sd", lambda name: tiny.sd1(), removed=["cat"], original="other")
    (tmp_path / "coco.csv").write_text("case_number,prompt,evaluation_seed\n0,a cat,0\n")
    coco = benchmark_of("coco", own, lists=[tmp_path / "coco.csv"])
    steps = {
        (name, source.original): sampler_of(benchmark, source).steps
        for source in (own, other)
        for name, benchmark in (("tinyworld", benchmark_of("tinyworld", source)), ("coco", coco))
    }
    assert steps == {
        ("tinyworld", "tinyworld"): profile_of("tinyworld").sampling.steps,
        ("tinyworld", "other"): TinyWorld.steps,
        ("coco", "tinyworld"): 100,
        ("coco", "other"): 100,
    }
    assert isinstance(metrics_of(benchmark_of("tinyworld", own), "cpu"), TinyWorldMetrics)
    with pytest.raises(InputError, match="--classifier: expected none for tinyworld"):
        metrics_of(benchmark_of("tinyworld", own), "cpu", "someone/classifier")


def test_what_cannot_be_evaluated(tmp_path: Path) -> None:
    def load(name: str) -> Any:
        del name
        return world.pipeline()

    with pytest.raises(InputError, match="expected the concepts removed from"):
        source_of("tinyworld", load)
    Ledger.open_or_create(tmp_path / "empty", world.pipeline(), "tinyworld")
    with pytest.raises(InputError, match="expected a ledger in which a removal stands"):
        source_of(str(tmp_path / "empty"), load)
    source = source_of("tinyworld", load, removed=["cat"])
    assert [row.name for row in source.variants] == [ORIGINAL, NEGATIVE, DESTROYED]
    # What another call asks to be gone goes into another folder.
    assert source.folder != source_of("tinyworld", load, removed=["cat", "dog"]).folder
    with pytest.raises(UnknownNameError, match="standard"):
        benchmark_of("tinyworld", source, suite="standart")
    with pytest.raises(UnknownNameError, match="imagenette"):
        benchmark_of("imagenete", source)
    with pytest.raises(InputError, match=r"expected 1 --list for imagenette \(path\), got 0"):
        benchmark_of("imagenette", source)
    with pytest.raises(InputError, match=r"expected 2 --list for sixcd-dual \(clean, malicious\), got 1"):
        benchmark_of("sixcd-dual", source, lists=[tmp_path / "list.csv"])
    with pytest.raises(InputError, match="expected 0 --list for tinyworld, got 1"):
        benchmark_of("tinyworld", source, lists=[tmp_path / "list.csv"])


def test_a_concept_that_was_removed_twice_counts_once(tmp_path: Path) -> None:
    pipe = world.pipeline()
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "tinyworld")
    for target in ("cat", "kitty", "cat"):
        ledger.remove(pipe, make_eraser("uce"), [Concept(target=target)])
    source = source_of(str(tmp_path / "ledger"), lambda name: pipe)
    assert source.removed == ("cat", "kitty")
    assert benchmark_of("tinyworld", source).id == TinyWorld(removed=("cat",), total=80).id


def test_a_suite_is_the_tiny_worlds_and_settings_are_each_benchmarks_own(tmp_path: Path) -> None:
    source = source_of("tinyworld", lambda name: world.pipeline(), removed=["cat"])
    quick, named = benchmark_of("tinyworld", source), benchmark_of("tinyworld", source, suite="quick")
    assert quick.id == named.id
    assert quick.short == "tinyworld-quick"
    own = benchmark_of("tinyworld", source, settings=["total=24", "seed=1"])
    assert own.n == 24
    assert own.about()["settings"] == {"removed": ("cat",), "total": 24, "seed": 1}
    assert own.short == f"tinyworld-{own.digest}"
    rows = ["case_number,prompt,evaluation_seed", "0,a cat,0", "1,a dog,1"]
    (tmp_path / "coco.csv").write_text("\n".join(rows))
    files = [tmp_path / "coco.csv"]
    one, both = (benchmark_of("coco", source, lists=files, settings=given) for given in (["limit=1"], []))
    assert (one.n, both.n) == (1, 2)
    assert one.short != both.short
    assert one.about()["settings"] == {"limit": 1}
    for wrong, match in (
        ({"suite": "quick"}, "--suite: expected none for coco, got 'quick'"),
        ({"settings": ["limit=many"]}, "--set limit: .*integer, got 'many'"),
        ({"settings": ["limits=1"]}, "Unknown coco setting 'limits'. Did you mean 'limit'"),
        ({"settings": ["path=other.csv"]}, r"Unknown coco setting 'path'\. .*Known: limit"),
    ):
        with pytest.raises((InputError, UnknownNameError), match=match):
            benchmark_of("coco", source, lists=files, **wrong)
    with pytest.raises(InputError, match="--suite: expected none beside --set total, got 'quick'"):
        benchmark_of("tinyworld", source, suite="quick", settings=["total=24"])
    with pytest.raises(InputError, match=r"^tinyworld: expected distinct removed concepts and at least 8 images"):
        benchmark_of("tinyworld", source, settings=["total=2"])
    people = tmp_path / "people.csv"
    people.write_text("id,type,text,concept,seed\n1,retain,50 Cent,50 Cent,1")
    (tmp_path / "labels.csv").write_text("Labels,Index\nAaliyah_[m.0x3n],0")
    with pytest.raises(UnknownNameError, match="detector label '50 Cent'"):
        _ = benchmark_of("celebrities", source, lists=[people], settings=[f"labels={tmp_path / 'labels.csv'}"]).items
