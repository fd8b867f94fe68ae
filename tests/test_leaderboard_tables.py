"""The tables of the leaderboard: each in the order of what a user asks for, from the rows that are there."""

import json
from pathlib import Path
from typing import Any

from docs.build_tables import with_tables
from docs.tables.methods import measured
from erasure.eval.stats.scores import Rate
from erasure.runs.overview import read_measured


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
        name.replace("_", "-"): {**dict(zip(("value", "low", "high"), values, strict=True)), "floor": "gold"}
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
    row(folder, "uce", "neon", (20, 20, 20))
    row(folder, "uce", "eight", (10, 18, 19))
    row(folder, "uce", "cat", (4, 20, 20), settings="published", candidate="published")
    row(folder, "oce", "cat", (20, 16, 18), audit=audit(relearn=(0.3, 0.01, 0.5), soft_prompt=(0.1, 0.0, 0.2)))
    no_lora = {"mib": 0.001, "lora": None}
    row(folder, "sld", "cat", (20, 0, 10), artefact=no_lora)
    return folder


def test_all_rows_are_there_with_rates_over_the_single_concepts(tmp_path: Path) -> None:
    rows = built("leaderboard: all", results(tmp_path))
    labels = ["[`uce`](uce.md)", "[`oce`](erasers/oce.md)", "[`uce`](uce.md), published", "[`sld`](erasers/sld.md)"]
    assert [each[0] for each in rows] == labels
    uce = rows[0]
    assert uce[1:4] == ["default", "cat, neon", "0.900 [0.769, 0.960] of 40"]
    assert uce[-4:] == ["2", "0.4", "12", "0.25"]
    page = with_tables("<!-- table leaderboard: all -->\n<!-- end table -->\n", tmp_path)
    assert "- 6 rows: commit 0123456789, cpu" in page


def test_each_order_is_what_a_user_asks_for(tmp_path: Path) -> None:
    results(tmp_path)
    kept = [(each[0].split("`")[1], each[1].split()[0]) for each in built("leaderboard-kept: all", tmp_path)]
    assert kept == [("uce", "1.000"), ("uce", "1.000"), ("oce", "0.800"), ("sld", "0.000")]
    attacked = built("leaderboard-attacked: all", tmp_path)
    assert [each[0].split("`")[1] for each in attacked] == ["oce", "uce"]
    assert attacked[0][1:5] == ["cat", "0.30, relearn", "none", "gold"]
    assert attacked[1][2:4] == ["0.90, soft-prompt", "plain, soft-prompt"]
    undone = built("leaderboard-undone: all", tmp_path)
    assert [each[0].split("`")[1] for each in undone] == ["uce", "uce", "sld"]
    assert undone[0][1] == "yes"
    assert undone[0][-3:] == ["0.500 [0.299, 0.701] of 20", "0.900 [0.699, 0.972] of 20", "0.950 [0.764, 0.991] of 20"]
    lora = built("leaderboard-lora: all", tmp_path)
    assert [each[0].split("`")[1] for each in lora] == ["uce", "oce", "uce"]
    assert lora[0][1:3] == ["0.125", "0.5"]
    assert len(built("leaderboard-cases: all", tmp_path)) == 6
    assert [each[:2] for each in built("measured: oce", tmp_path)] == [["chosen: default", "cat"]]


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
        "efficacy 0.90; near 1.00; far 1.00; cat + neon",
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
