"""The tables of the leaderboard: each in the order of what a user asks for, from the rows that are there."""

import json
from pathlib import Path
from typing import Any

from docs.build_tables import with_tables
from docs.tables.methods import measured
from erasure.eval.probes import probe_class
from erasure.eval.stats.scores import Rate
from erasure.runs.overview import read_measured
from experiments.leaderboard import PROBES_OF_ROWS


def rate(hits: int) -> dict[str, object]:
    return Rate(hits=hits, n=20).as_json()


def row(folder: Path, method: str, case: str, hits: tuple[int, int, int], **changes: Any) -> None:
    held_out, near, far = map(rate, hits)
    record: dict[str, Any] = {
        "method": method,
        "settings": "chosen",
        "candidate": "default",
        "case": case,
        "rates": {
            "held_out": held_out,
            "worst": {"concept": "cat", **held_out},
            "near": near,
            "far": far,
            "joint": rate(hits[0] // 2),
        },
        "fit": {"cpu_seconds": [1.5, 0.5], "memory_mib": 12.0},
        "seconds_per_image": 0.4,
        "artefact": {"mib": 0.25, "lora": {"mib": 0.5, "relative_error": 0.125}},
        "audit": None,
        "git": {"commit": "0123456789abcdef", "dirty": False},
    } | changes
    place = folder / "leaderboard" / method / record["settings"] / case
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps(record), encoding="utf-8")


def audit(**residues: tuple[float, float, float]) -> dict[str, Any]:
    outside = {
        name.replace("_", "-"): {
            **dict(zip(("value", "low", "high"), values, strict=True)),
            "floor": "gold",
            "kept": {"erased": 1 - values[0], "original": 1.0},
        }
        for name, values in residues.items()
    }
    return {"concepts": {"cat": {"outside": outside, "inside": {}, "verdict": "", "failed": {}}}}


def built(name: str, folder: Path) -> list[list[str]]:
    """Return the cells of the rows of a table, without its headings."""
    page = with_tables(f"<!-- table {name} -->\n<!-- end table -->\n", folder)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def results(folder: Path) -> Path:
    row(folder, "uce", "cat", (16, 20, 20), audit=audit(plain=(0.2, 0.1, 0.3), soft_prompt=(0.9, 0.8, 1.0)))
    for case in ("neon", "gun", "Biscuit"):
        row(folder, "uce", case, (20, 20, 20))
    row(folder, "uce", "eight", (10, 18, 19))
    row(folder, "uce", "cat", (4, 20, 20), settings="published", candidate="published")
    row(folder, "oce", "cat", (20, 16, 18), audit=audit(relearn=(0.3, 0.01, 0.5), soft_prompt=(0.4, 0.0, 0.45)))
    no_lora = {"mib": 0.001, "lora": None}
    row(folder, "sld", "cat", (20, 20, 20), artefact=no_lora, audit=audit())
    row(folder, "stack", "cat", (20, 20, 20), settings="minutes", audit=audit(plain=(0.0, 0.0, 0.1)))
    return folder


def test_all_rows_are_there_with_rates_over_the_single_concepts(tmp_path: Path) -> None:
    rows = built("leaderboard: all", results(tmp_path))
    part = ", 1 of 4 concepts"
    others = [f"[`sld`](erasers/sld.md){part}", f"[`oce`](erasers/oce.md){part}", f"[`uce`](uce.md), published{part}"]
    assert [each[0] for each in rows] == ["[`uce`](uce.md)", *others], "the only one with all concepts is first"
    uce = rows[0]
    assert uce[1:4] == ["default", "cat, neon, gun, Biscuit", "0.950 [0.878, 0.980] of 80"]
    assert uce[-4:] == ["2", "0.4", "12", "0.25"]
    page = with_tables("<!-- table leaderboard: all -->\n<!-- end table -->\n", tmp_path)
    assert "- 8 rows: commit 0123456789, cpu" in page


def test_each_concept_has_its_own_counts(tmp_path: Path) -> None:
    rows = {cells[0]: cells[1:] for cells in built("leaderboard-concepts: all", results(tmp_path))}
    assert rows["[`uce`](uce.md)"] == ["16/20 · 20/20 · 20/20", *["20/20 · 20/20 · 20/20"] * 3]
    assert rows["[`oce`](erasers/oce.md)"] == ["20/20 · 16/20 · 18/20", "–", "–", "–"]


def test_a_larger_budget_stands_beside_the_ranking(tmp_path: Path) -> None:
    results(tmp_path)
    for name in ("leaderboard", "leaderboard-attacked"):
        assert [each[0].split("`")[1] for each in built(f"{name}: minutes", tmp_path)] == ["stack"], name
    for name in ("leaderboard", "leaderboard-kept", "leaderboard-attacked", "leaderboard-undone", "leaderboard-lora"):
        assert "stack" not in str(built(f"{name}: all", tmp_path)), name
    row(tmp_path / "tinyworld-flux", "stack", "cat", (20, 10, 20), settings="minutes")
    assert not built("leaderboard: tinyworld-flux", tmp_path)
    assert built("leaderboard: tinyworld-flux minutes", tmp_path)[0][4].startswith("0.500")


def test_methods_that_hold_against_attacks_are_first_and_unmeasured_ones_last(tmp_path: Path) -> None:
    results(tmp_path)
    row(tmp_path, "oce", "gun", (1, 1, 1), settings="published", audit=audit(plain=(0.0, 0.0, 0.01)))
    oce, uce, sld = built("leaderboard-attacked: all", tmp_path)
    assert [each[0].split("`")[1] for each in (oce, uce, sld)] == ["oce", "uce", "sld"]
    unmeasured = "plain, hand-over, inversion, img2img, unlearn-diff, quantise, emphasis"
    assert oce[1:7] == ["cat", "0.50, relearn", "none", "gold", "0.60 / 1.00, soft-prompt", unmeasured]
    assert oce[7] == "0.40 [0.00, 0.45]"
    assert uce[2:4] == ["1.00, soft-prompt", "plain, soft-prompt"]
    assert sld[2:6] == ["–", "–", "–", "–"]
    assert sld[6].startswith("plain, soft-prompt, hand-over, ")
    outside = {name for name in PROBES_OF_ROWS if probe_class(name).access != "inside"}
    assert outside == set(sld[6].split(", ")), "every probe of a row is there"


def test_each_order_is_what_a_user_asks_for(tmp_path: Path) -> None:
    results(tmp_path)
    kept = [(each[0].split("`")[1], each[1].split()[0]) for each in built("leaderboard-kept: all", tmp_path)]
    assert kept == [("uce", "1.000"), ("sld", "1.000"), ("uce", "1.000"), ("oce", "0.800")]
    undone = built("leaderboard-undone: all", tmp_path)
    assert [each[0].split("`")[1] for each in undone] == ["uce", "sld", "uce"]
    assert undone[0][1] == "yes"
    assert undone[0][-3:] == ["0.500 [0.299, 0.701] of 20", "0.900 [0.699, 0.972] of 20", "0.950 [0.764, 0.991] of 20"]
    lora = built("leaderboard-lora: all", tmp_path)
    assert [each[0].split("`")[1] for each in lora] == ["uce", "oce", "uce"]
    assert lora[0][1:3] == ["0.125", "0.5"]
    cases = built("leaderboard-cases: all", tmp_path)
    assert len(cases) == 9
    assert cases[0][-2] == "1.000 [0.839, 1.000] of 20, cat"
    assert [each[:2] for each in built("measured: oce", tmp_path)] == [["chosen: default", "cat"]]


def test_a_family_says_which_of_its_concepts_the_settings_were_chosen_on(tmp_path: Path) -> None:
    of_family = {"concepts": {"gun": audit(plain=(0.5, 0.4, 0.6))["concepts"]["cat"]}}
    alone = {"concepts": {"gun": audit(plain=(0.1, 0.0, 0.2))["concepts"]["cat"]}}
    row(tmp_path, "uce", "weapons", (20, 20, 20), audit=of_family)
    row(tmp_path, "uce", "gun", (20, 20, 20), audit=alone)
    family = "weapons (has bomb of the choice)"
    assert [each[1] for each in built("leaderboard-cases: all", tmp_path)] == ["gun", family]
    assert [each[1] for each in built("measured: uce", tmp_path)] == ["gun", family]
    assert [each[1] for each in built("leaderboard-attacked: all", tmp_path)] == ["gun", f"gun, {family}"]


def test_another_model_has_tables_of_its_own(tmp_path: Path) -> None:
    results(tmp_path)
    row(tmp_path / "tinyworld-flux", "esd", "gun", (20, 10, 20), audit=audit(relearn=(0.3, 0.2, 0.5)))
    for name in ("leaderboard", "leaderboard-kept", "leaderboard-attacked", "leaderboard-cases"):
        assert [each[0].split("`")[1] for each in built(f"{name}: tinyworld-flux", tmp_path)] == ["esd"], name
        assert "esd" not in str(built(f"{name}: all", tmp_path)), name


def test_rows_that_are_not_measured_are_absent(tmp_path: Path) -> None:
    for name in ("leaderboard: all", "leaderboard-attacked: all", "measured: uce", "sweep: sweep/*/run.json"):
        page = with_tables(f"<!-- table {name} -->\n<!-- end table -->\n", tmp_path)
        assert "*No result is committed yet.*" in page
    row(tmp_path, "uce", "eight", (10, 18, 19))
    assert not built("leaderboard: all", tmp_path)
    assert len(built("leaderboard-cases: all", tmp_path)) == 1


def test_the_measured_columns_are_those_of_the_leaderboard(tmp_path: Path) -> None:
    (tmp_path / "measured.csv").write_text(measured(results(tmp_path)), encoding="utf-8")
    assert read_measured(tmp_path / "measured.csv")["uce"] == (
        "2",
        "efficacy 0.95; near 1.00; far 1.00; cat + neon + gun + Biscuit",
    )


def test_the_sweep_shows_each_candidate_and_why_one_is_out(tmp_path: Path) -> None:
    fitted = {"held_out": rate(10), "near": rate(20), "far": rate(20), "merit": 0.75, "cpu_seconds": 1.25}
    none = {"held_out": None, "near": None, "far": None, "merit": None, "cpu_seconds": None}
    candidates = [
        {"name": "published", "settings": {}, **none, "fits": [{"failed": "expected a fit of at most 150 s"}]},
        {"name": "tiny", "settings": {"lr": 0.1, "steps": 2}, **fitted, "fits": [{}]},
    ]
    (tmp_path / "sweep" / "esd").mkdir(parents=True)
    record = {"method": "esd", "chosen": "tiny", "candidates": candidates}
    (tmp_path / "sweep" / "esd" / "run.json").write_text(json.dumps(record))
    first, second = built("sweep: sweep/*/run.json", tmp_path)
    assert first == ["`esd`", "published", "defaults", "–", "–", "–", "–", "expected a fit of at most 150 s"]
    assert second[1:4] == ["**tiny**", "lr=0.1, steps=2", "0.500 [0.299, 0.701] of 20"]
    assert second[-2:] == ["0.750", "1.2"]
    record = {"method": "esd", "chosen": None, "candidates": candidates[:1]}
    (tmp_path / "sweep" / "esd" / "run.json").write_text(json.dumps(record))
    assert built("sweep: sweep/*/run.json", tmp_path) == [first]
