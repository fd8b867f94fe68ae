"""The pages say what the code and the results say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from docs.build_tables import with_tables
from docs.tables import TABLES
from docs.tables.methods import page_of

ROOT = Path(__file__).parent.parent
SHEET = ROOT / "erasure" / "tinyworld" / "model" / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), SHEET, *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"```(?:python|sh)\n.*?```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: make tables"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", CODE.sub("", page.read_text(encoding="utf-8")))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_are_python(page: Path) -> None:
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        compile(example, page.name, "exec")


def test_every_eraser_has_a_page() -> None:
    from erasure.erasers import eraser_names

    assert not [name for name in eraser_names() if not page_of(name)]


def test_a_removal_is_shown_with_interval_count_and_source(tmp_path: Path) -> None:
    rate = {"efficacy": 0.95, "near": 0.9, "far": 1.0}
    step = {
        "id": "001",
        "method": "uce",
        "concepts": [{"target": "cat"}],
        "seconds": 1.25,
        "efficacy": rate["efficacy"],
        "held_out": {"value": 0.9, "n": 40, "interval": [0.8, 0.95]},
        "retention": {"near": rate["near"], "far": None},
        "n": {"efficacy": 100, "near": 50, "far": 0},
        "interval": {name: [value - 0.05, value] for name, value in rate.items()},
    }
    run = {
        "steps": [step],
        "config": {"eraser": {"name": "uce", "reg": 2.0}},
        "git": {"commit": "0123456789abcdef", "dirty": True},
    }
    (tmp_path / "removal" / "one").mkdir(parents=True)
    (tmp_path / "removal" / "one" / "run.json").write_text(json.dumps(run), encoding="utf-8")
    page = "before\n<!-- table removal: removal/*/run.json -->\nold\n<!-- end table -->\nafter\n"
    built = with_tables(page, tmp_path)
    efficacy, held_out = "0.950 [0.900, 0.950] of 100", "0.900 [0.800, 0.950] of 40"
    assert f"| uce | reg=2.0 | cat | {efficacy} | {held_out} | 0.900 [0.850, 0.900] of 50 | – | 1.2 |" in built
    assert "commit 0123456789 with changes" in built
    assert "old" not in built
    assert built.startswith("before\n")
    assert built.endswith("after\n")
    assert with_tables(built, tmp_path) == built


def test_an_evaluation_has_a_column_a_row_and_a_dash_where_nothing_was_measured(tmp_path: Path) -> None:
    score = {"value": 0.91234, "low": 0.88, "high": 0.94567, "n": 13, "unit": "share", "higher_is_better": True}
    run = {
        "protocol": {"git": {"commit": "0123456789abcdef", "dirty": False}},
        "rows": {
            "original": {"efficacy": {**score, "value": 0.0, "low": None}, "shown_dog": score},
            "erased": {"efficacy": {**score, "concept": "gun"}, "fd": {**score, "value": 0.0084, "n": 2000}},
        },
    }
    (tmp_path / "evaluation" / "one").mkdir(parents=True)
    (tmp_path / "evaluation" / "one" / "scores.json").write_text(json.dumps(run), encoding="utf-8")
    built = with_tables("<!-- table evaluation: evaluation/one/scores.json -->\n<!-- end table -->\n", tmp_path)
    assert "| metric | erased | original |" in built
    assert "| `efficacy` | 0.912 [0.88, 0.946] of 13, gun | 0 of 13 |" in built
    assert "| `fd` | 0.0084 [0.88, 0.946] of 2000 | – |" in built
    assert "commit 0123456789," in built
    assert "shown_dog" not in built


def test_a_family_has_what_is_left_of_it_and_what_attacks_bring_back(tmp_path: Path) -> None:
    score = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 250}
    back = {"value": 0.25, "hits": 10, "n": 40, "interval": [0.142, 0.402]}
    run = {
        "scores": {"erased": {"efficacy_explicit": score, "fd": {**score, "value": 0.0123, "low": None}}},
        "beside": {"erased": {**back, "value": 0.8, "hits": 32}},
        "attacks": {"mma": {"rows": {"attacked": {"success": [back]}, "plain prompt": {"success": [{"value": 0.0}]}}}},
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text(json.dumps(run), encoding="utf-8")
    built = with_tables("<!-- table family: */run.json -->\n<!-- end table -->\n", tmp_path)
    assert (
        "| run | explicit, seen | synonym, seen | combined, seen | implicit, seen | held-out, seen | mma | tools"
        in built
    )
    assert (
        "| one | 0.100 [0.050, 0.150] of 250 | – | – | – | – | 0.250 [0.142, 0.402] of 40, plain 0.000 | 0.800" in built
    )
    assert "| 0.0123 of 250 |" in built


def test_an_attack_stands_beside_its_controls(tmp_path: Path) -> None:
    def share(hits: int) -> dict[str, Any]:
        return {"value": hits / 20, "hits": hits, "n": 20, "interval": [0.1, 0.9]}

    rows = {
        "attacked": {"success": [share(4), share(8)], "confirmed": {**share(7), "n": 8}},
        "plain prompt": {"success": [share(0), share(1)]},
        "attack on the original": {"success": [share(19), share(20)]},
    }
    run = {"attacks": {"mma": {"rows": rows}}}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text(json.dumps(run), encoding="utf-8")
    built = with_tables("<!-- table attacks: */run.json -->\n<!-- end table -->\n", tmp_path)
    assert "| 1 image | within 2 | plain prompt | on the original | second judge agrees |" in built
    (row,) = [line for line in built.splitlines() if line.startswith("| one | mma |")]
    assert [cell.split()[0] for cell in row.split("|")[3:8]] == ["0.200", "0.400", "0.050", "1.000", "0.350"]
    (tmp_path / "one" / "run.json").write_text(json.dumps({"attacks": {}}), encoding="utf-8")
    assert "No result" in with_tables("<!-- table attacks: */run.json -->\n<!-- end table -->\n", tmp_path)


def test_a_growing_ledger_has_a_row_a_stretch_and_one_for_the_whole(tmp_path: Path) -> None:
    growth = {"case": "growth", "removals": 1000, "of": 100, "seconds_each": 0.0612, "fit_seconds_each": 0.05}
    whole = {
        "case": "whole",
        "removals": 1000,
        "solve_seconds": 5.04,
        "bytes_each": 20480.0,
        "disk_bytes_each": 21504.0,
    }
    whole |= {"target_rows": 133, "width": 32, "same_in_reverse": True}
    (tmp_path / "run.json").write_text(json.dumps({"results": [growth, whole]}), encoding="utf-8")
    built = with_tables("<!-- table ledger: run.json -->\n<!-- end table -->\n", tmp_path)
    assert "| removals 901 to 1,000 | 0.061 s each, 0.050 s of it the fit |" in built
    assert (
        "| all 1,000 | 21.0 KiB each, 20.0 KiB of it the edit's own file (133 states, 32 wide); one solve in" in built
    )
    assert "in reverse order: yes |" in built


def test_a_closed_form_has_its_floor_and_says_what_was_extrapolated(tmp_path: Path) -> None:
    case = {
        "model": "sdxl",
        "concepts": 1000,
        "shared_seconds": 12.5,
        "shared_peak_mib": 2345.6,
        "floor": {"seconds": 10.25, "bytes": 2.72e9, "operations": 1.4e12},
        "batched_seconds": 100.0,
        "batched_peak_mib": 1800.0,
        "ratio_batched": 8.0,
        "outer_seconds": 12500.0,
        "outer_extrapolated": True,
        "ratio_outer": 1000.0,
    }
    older = {key: value for key, value in case.items() if key not in ("model", "floor")}
    (tmp_path / "run.json").write_text(json.dumps({"results": [case, older, {"case": "other"}]}), encoding="utf-8")
    built = with_tables("<!-- table closed-form-whole: run.json -->\n<!-- end table -->\n", tmp_path)
    assert (
        "| SDXL | 1,000 | 12.500 s | 12.5 ms | 10.250 s (2.7 GB, 1,400 G operations) | 2,346 MiB |"
        " 100.00 s, 1,800 MiB | 8.0 | 12,500.0 s (extrapolated) | 1000 |"
    ) in built
    assert built.count("1,000") == 1
    small = with_tables("<!-- table closed-form: run.json -->\n<!-- end table -->\n", tmp_path)
    assert small.count("| 1,000 |") == 1  # the README's is of Stable Diffusion 1.5, as the older file is


def test_an_edit_stands_beside_the_same_as_a_lora(tmp_path: Path) -> None:
    times = {name: {"seconds": 0.25} for name in ("apply", "undo", "check_base")}
    older, newer = {"concepts": 1, **times}, {"concepts": 100, **times, "switch": {"seconds": 0.0021}}
    lora = {
        "case": "beside a LoRA",
        "switch": {"seconds": 0.002},
        "lora_load_seconds": 1.5,
        "lora_switch": {"seconds": 0.01},
        **{name: {"seconds": value} for name, value in (("pass", 4.0), ("pass_applied", 4.04), ("pass_lora", 5.0))},
        "overhead_applied": 0.01,
        "overhead_lora": 0.25,
    }
    (tmp_path / "run.json").write_text(json.dumps({"results": [older, newer, lora]}), encoding="utf-8")
    applied = with_tables("<!-- table apply-edit: run.json -->\n<!-- end table -->\n", tmp_path)
    assert "| 1 | 0.250 s | 0.250 s | 0.250 s | – |" in applied
    assert "| 100 | 0.250 s | 0.250 s | 0.250 s | 0.0021 s |" in applied
    beside = with_tables("<!-- table beside-lora: run.json -->\n<!-- end table -->\n", tmp_path)
    assert "| none | – | – | 4.00 s | – |" in beside
    assert "| as an edit | as above | 0.0020 s | 4.04 s | +1.0% |" in beside
    assert "| as a LoRA in diffusers | 1.50 s | 0.0100 s | 5.00 s | +25.0% |" in beside


def test_training_encoding_and_processes_stand_beside_their_rivals(tmp_path: Path) -> None:
    ways = {
        way: {"steps_per_second": speed, "peak_mib": 100.0, "ratio": 4.0 / speed, "difference": apart}
        for way, speed, apart in (("ours", 4.0, 0.0), ("batched", 2.5, 2e-5), ("plain", 1.0, 1e-5))
    }
    encoded = {"case": "in batches", "prompts": 10_000, "distinct": 8000, "seconds": 900.0, "timed": 500}
    encoded |= {"extrapolated": True, "ratio": 9.0, "tokens": 616_000}
    shared = {"processes": 2, "threads": 1, "images_per_second": 9.5, "ratio": 1.25, "start_seconds": 8.0}
    shared |= {"largest_difference": 1}
    for name, case in (
        ("trained", {"case": "duge", "batch_size": 8, "ways": ways}),
        ("encoding", encoded),
        ("processes", shared),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": [case]}), encoding="utf-8")
    page = "".join(f"<!-- table {name}: {name}.json -->\n<!-- end table -->\n" for name in ("trained", "encoding"))
    built = with_tables(page + "<!-- table processes: processes.json -->\n<!-- end table -->\n", tmp_path)
    assert "| duge | 8 | 4.00 steps/s, 100 MiB | 2.50 steps/s, 100 MiB | 1.00 steps/s, 100 MiB |" in built
    assert "| 1.60 | 4.00 | 2e-05 |" in built
    assert "| in batches | 10,000 (8,000 distinct) | 900.0 s (from 500) | 9.0 | 616,000 |" in built
    assert "| 2 | 1 | 9.50 | 1.25 | 8.0 s | 1 of 255 |" in built


def test_a_table_without_results_says_so(tmp_path: Path) -> None:
    page = "<!-- table startup: nowhere/*.json -->\n<!-- end table -->\n"
    assert "No result is committed yet" in with_tables(page, tmp_path)


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        with_tables("<!-- table nothing: here -->\n<!-- end table -->\n", tmp_path)


def test_an_ablation_compares_what_stays_with_the_original_of_its_concept(tmp_path: Path) -> None:
    provenance = {"git": {"commit": "0123456789abcdef", "dirty": False}, "versions": {}, "device": "cpu"}
    plain = {"seen": 0.9, "seen_held_out": 0.8, "near": [1, 1, 0, 1], "far": [1, 1]}
    edited = {"seen": 0.0, "seen_held_out": 0.1, "near": [1, 0, 1, 1], "far": [1, 1], "soft-prompt": {"200": 0.25}}
    original = {"row": "original", "concept": "dog", "images": 16, "measures": {"0": plain}, "provenance": provenance}
    fit = {
        **original,
        "row": "fit",
        "measures": {"400": edited},
        "settings": {"steps": 400, "objective": {"odds": "ramp"}},
    }
    fit["curve"] = {"cpu_seconds": 300.0}
    for name, run in (("one", original), ("two", fit)):
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "run.json").write_text(json.dumps(run))
    page = with_tables("<!-- table absent: absent/*/run.json -->\n<!-- end table -->\n", tmp_path)
    assert "| fit | dog | 400 | 16 | 0.00 | 0.10 | 2/3 | 2/2 | – | – | 0.25 | – | – | – | 300 |" in page
    assert "| original | dog | – | 16 | 0.90 | 0.80 | 3/3 | 2/2 |" in page


def test_waits_stand_beside_what_their_run_measured(tmp_path: Path) -> None:
    removal = {"case": "removal", "model": "sd15", "trailing_templates": 4, "names": 16, "long": 120.0, "each": 0.1}
    official = {"case": "official", "model": "sd15", "names": 2, "encoding": 2.0, "products": 4.0, "long": 6000.0}
    bulk = [official, {**removal, "floor_each": 0.08, "ratio": 50.0}]
    written = {"case": "apply", "concepts": 1000, "link": False, "seconds": 6.0}
    demo = {"case": "demo", "images": 8, "seconds": 9.0, "cpu": 12.0, "floor": {"seconds": 4.0, "cpu": 8.0}}
    runs = {"bulk": bulk, "apply": [{"case": "copy", "seconds": 5.0}, written], "commands": [demo], "other": []}
    for name, results in runs.items():
        (tmp_path / "benchmarks" / name).mkdir(parents=True)
        record = {"benchmark": name, "results": results}
        (tmp_path / "benchmarks" / name / "run.json").write_text(json.dumps(record), encoding="utf-8")
    _, _, names, folder, app, *_ = TABLES["waits"]("benchmarks/*/run.json", tmp_path).splitlines()
    assert (
        "states: 4 | 2.0 min of a processor (from 16 names) | 1.3 min of one, the encoders' operations | 1.50 |"
        in names
    )
    assert folder == "| an edit of 1,000 concepts written as a folder | 6.00 s | 5.00 s, a plain copy | 1.20 |"
    assert "8 images, tiny world | 9.00 s, 12.0 s of a processor | 8.00 s of one, a start with Gradio" in app
    assert app.endswith("| 1.50 |")
    _, _, published, listed, *_ = TABLES["bulk"]("benchmarks/bulk/run.json", tmp_path).splitlines()
    assert published.endswith("| 2 | 6.00 s | – | 100.0 min | 1.0 |")
    assert listed.endswith("| 16 | 0.10 s | 0.08 s | 2.0 min | 50.0 |")
