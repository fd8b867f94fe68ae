"""The tables of the audits, from records whose answers are known."""

import json
from pathlib import Path
from typing import Any

from docs.build_tables import with_tables

METHODS = "abcdefgh"
SIZES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def reading(value: float, *, kept: float | None = 0.9, width: float = 0.02, **changes: Any) -> dict[str, Any]:
    return {
        "part": "",
        "dose": 0.1,
        "label": "2 of 20 steps",
        "floor": "gold",
        "residue": {"value": value, "low": value - width, "high": value + width, "confidence": 0.95},
        "difference": None,
        "rows": {"erased": {"kept": kept}, "original": {"kept": 0.95}},
    } | changes


def probe(value: float | None, *, finds: bool | None = None, **changes: Any) -> dict[str, Any]:
    low = -1.0 if value is None else value - 0.02
    return {
        "access": "image",
        "unit": "steps",
        "status": "measured",
        "reason": "",
        "effort": False,
        "doses": [0.1, 0.4],
        "half_doses": {},
        "speed_ratios": {},
        "seconds": {"erased": 12.4, "original": 10.0},
        "finds": low > 0.05 if finds is None else finds,
        "most": None if value is None else value + 0.02,
        "strongest": None if value is None else reading(value),
        "side_effect": None,
    } | changes


def row(folder: Path, method: str, case: str, *audits: tuple[str, dict[str, Any]]) -> None:
    concepts = {
        concept: {
            "verdict": "",
            "gold": case,
            "kept": {"erased": 0.9, "original": 0.95},
            "untested": [],
            "probes": probes,
        }
        for concept, probes in audits
    }
    record = {"method": method, "case": case, "concepts": concepts, "git": {"commit": "0123456789ab", "dirty": False}}
    place = folder / "audit" / method / case
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps(record), encoding="utf-8")


def page(table: str, folder: Path) -> str:
    return with_tables(f"<!-- table {table} -->\n<!-- end table -->\n", folder)


def built(table: str, folder: Path) -> list[list[str]]:
    """Return the cells of a table, its headings first."""
    lines = [line for line in page(table, folder).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in [lines[0], *lines[2:]]]


def test_a_probe_is_a_row_and_a_method_a_column(tmp_path: Path) -> None:
    failed = probe(None, status="failed", reason="no kernel (RuntimeError)")
    up = reading(0, residue=None, difference={"value": 0.1, "low": 0.04, "high": 0.2})
    probes = {"plain": probe(0.01), "hand-over": probe(0.4), "mma": failed, "staged": probe(None)}
    row(tmp_path, "uce", "cat", ("cat", {**probes, "priming": probe(None, side_effect=up)}))
    bare = reading(0.0, kept=None, floor="plain")
    row(tmp_path, "esd", "cat", ("cat", {"plain": probe(0.0), "hand-over": probe(0.0, strongest=bare)}))
    headings, *rows = built("audits: cat", tmp_path)
    assert headings == ["probe", "floor", "`esd`", "`uce`"]
    cells = {each[0]: each[1:] for each in rows}
    assert cells["hand-over"] == ["plain, gold", "0.00 [-0.02, 0.02]", "**0.40 [0.38, 0.42]**, kept 0.90 / 0.95"]
    assert cells["plain"][1:] == ["0.00 [-0.02, 0.02], kept 0.90 / 0.95", "0.01 [-0.01, 0.03], kept 0.90 / 0.95"]
    assert cells["mma"] == ["–", "–", "not measured: no kernel (RuntimeError)"]
    assert cells["staged"] == ["–", "–", "no contrast"]
    assert cells["priming"] == ["original", "–", "**+0.10 [+0.04, +0.20]**"]
    assert "- 2 rows: commit 0123456789, cpu" in page("audits: cat", tmp_path)


def test_a_family_has_the_rows_of_each_of_its_concepts(tmp_path: Path) -> None:
    row(tmp_path, "uce", "weapons", ("gun", {"plain": probe(0.5)}), ("bomb", {"plain": probe(0.0)}))
    rows = built("audits: weapons", tmp_path)
    assert [each[:2] for each in rows] == [
        ["concept", "probe"],
        ["gun, of weapons", "plain"],
        ["bomb, of weapons", "plain"],
    ]


def test_each_method_says_which_probes_it_fails(tmp_path: Path) -> None:
    inside = probe(-0.5, access="inside", finds=True)
    probes = {"plain": probe(0.01), "hand-over": probe(0.4), "relearn": probe(0.7), "hidden": inside}
    row(tmp_path, "uce", "cat", ("cat", probes))
    row(tmp_path, "esd", "cat", ("cat", {"plain": probe(0.0), "mma": probe(0.01)}))
    text = page("audits-failures: all", tmp_path)
    assert (
        "- `uce`, cat: brought back by relearn (0.70, 2 of 20 steps) and hand-over (0.40, 2 of 20 steps);"
        " not by plain; inside, hidden still tells it apart; 0.90 of what should stay is drawn (original 0.95).\n"
    ) in text
    assert "- `esd`, cat: brought back by none, with at most 0.03 (mma) not excluded; not by plain and mma;" in text
    assert text.index("`esd`") < text.index("`uce`")


def test_probes_in_one_order_correlate_by_1_and_are_redundant_if_they_decide_alike(tmp_path: Path) -> None:
    for method, size in zip(METHODS, SIZES, strict=True):
        probes = {
            "hand-over": probe(size),
            "img2img": probe(size**0.5),
            "mma": probe(0.8 - size),
            "staged": probe(size, finds=False),
            "hidden": probe(-size, access="inside", finds=size > 0.05),
            "plain": probe(0.0),
        }
        row(tmp_path, method, "cat", ("cat", probes))
    headings, *rows = built("audits-alike: all", tmp_path)
    assert headings == ["probe", "hand-over", "img2img", "mma", "staged"]
    cells = {each[0]: dict(zip(headings, each, strict=False)) for each in rows}
    assert cells["img2img"]["hand-over"] == "1.00 of 8"
    assert cells["mma"]["hand-over"] == "-1.00 of 8"
    assert cells["hidden"]["hand-over"] == "1.00 of 8", "inside a model the distance from 0 counts"
    assert "plain" not in cells, "one value for all"
    _, *pairs = built("audits-redundant: all", tmp_path)
    named = {(one, other): rest for one, other, *rest in pairs}
    assert set(named) == {("hand-over", "img2img"), ("hand-over", "hidden"), ("img2img", "hidden")}
    assert named["hand-over", "img2img"] == ["1.00", "8", "7", "12", "12"]


def test_ties_have_the_mean_of_their_ranks(tmp_path: Path) -> None:
    pairs = zip(METHODS, (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 7), strict=True)
    for method, one, other in pairs:
        row(tmp_path, method, "cat", ("cat", {"mma": probe(one / 8), "staged": probe(other / 8)}))
    # Ranks 7.5 and 7.5 in the place of 7 and 8: cov / (sd sd) = 41.5 / sqrt(42 * 41.5) = 0.994.
    assert built("audits-alike: all", tmp_path)[1] == ["staged", "0.99 of 8"]


def test_too_few_rows_are_not_compared(tmp_path: Path) -> None:
    for method, size in zip(METHODS[:7], SIZES, strict=False):
        row(tmp_path, method, "cat", ("cat", {"mma": probe(size), "staged": probe(size)}))
    assert "*No result is committed yet.*" in page("audits-alike: all", tmp_path)
    assert "*No result is committed yet.*" in page("audits-redundant: all", tmp_path)


def test_probes_that_were_compared_and_differ_are_said_to(tmp_path: Path) -> None:
    for method, size in zip(METHODS, SIZES, strict=True):
        row(tmp_path, method, "cat", ("cat", {"mma": probe(size), "staged": probe(0.8 - size)}))
    assert page("audits-redundant: all", tmp_path).splitlines()[1] == "No two probes are redundant by this rule."


def test_a_speed_ratio_says_where_the_doses_bound_it(tmp_path: Path) -> None:
    def trained(erased: float | None, gold: float | None, ratio: float | None) -> dict[str, Any]:
        ratios = {} if ratio is None else {"target": {"gold": ratio}}
        halves = {"target": {"erased": erased, "gold": gold}}
        return probe(0.5, effort=True, doses=[5, 25, 100], half_doses=halves, speed_ratios=ratios)

    for method, learned in {
        "a": trained(10, 40, 4.0),
        "b": trained(10, None, 10.0),
        "c": trained(5, 5, 1.0),
        "d": trained(None, 40, None),
        "e": probe(0.5),
    }.items():
        row(tmp_path, method, "cat", ("cat", {"relearn": learned}))
    headings, *rows = built("audits-speeds: all", tmp_path)
    assert headings == ["method", "concept", "relearn, target"]
    assert [each[2] for each in rows] == ["10; 4 x gold", "10; >= 10 x gold", "<= 5; not told from gold", "> 100"]


def test_the_planted_models_say_what_was_missed(tmp_path: Path) -> None:
    planted = {
        "about": "the names are dropped",
        "residues": {
            "plain": {"value": 0.0, "low": -0.1, "high": 0.1},
            "hidden": {"value": 1.0, "low": 0.9, "high": 1.1},
        },
        "kept": [0.4, 0.9, "gold"],
        "side effects": {"capacity": {"value": 0.2, "low": 0.1, "high": 0.3}},
        "found": ["capacity", "hidden", "kept"],
        "must": ["kept", "hidden", "inversion", "null-text"],
        "missed": ["inversion"],
        "silent": {"null-text": "no contrast", "mma": "no contrast"},
        "false": ["capacity"],
        "second gold at 0": {"hidden": True, "plain": False},
    }
    (tmp_path / "audit" / "planted").mkdir(parents=True)
    (tmp_path / "audit" / "planted" / "run.json").write_text(json.dumps({"planted": {"filter": planted}}))
    row(tmp_path, "uce", "cat", ("cat", {"plain": probe(0.0)}))
    [_, cells] = built("planted: audit/planted/run.json", tmp_path)
    must, missed, silent, false, second = cells[2:]
    assert (must, missed, silent) == ("kept, hidden, inversion, null-text", "inversion", "null-text: no contrast")
    assert (false, second) == ("capacity", "plain")
    probes = dict(built("planted-probes: audit/planted/run.json", tmp_path)[1:])
    assert probes["hidden"] == "**1.00 [0.90, 1.10]**, must"
    assert probes["plain"] == "0.00 [-0.10, 0.10]"
    assert probes["capacity"] == "**+0.20 [+0.10, +0.30]**"
    assert probes["inversion"] == "–, must"
    assert probes["kept"] == "**0.40 / 0.90**, must"


def test_without_a_record_every_table_says_so(tmp_path: Path) -> None:
    names = ("audits: cat", "audits-failures: all", "audits-alike: all", "audits-redundant: all", "audits-speeds: all")
    for name in (*names, "planted: audit/planted/run.json", "planted-probes: audit/planted/run.json"):
        assert "*No result is committed yet.*" in page(name, tmp_path), name
