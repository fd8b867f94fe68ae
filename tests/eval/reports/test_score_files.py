"""Score files side by side: one protocol a column, and what cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest

from erasure.errors import InputError, UnknownNameError
from erasure.eval.protocols.evaluate import FORMAT
from erasure.eval.reports.score_files import compare_scores


def score(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "n": 40, "low": value - 0.1, "high": value + 0.1, "higher_is_better": True, **more}


def written(folder: Path, name: str, value: float, steps: int = 20, **more: Any) -> Path:
    scores = {"efficacy": score(value, concept="cat"), "clip_score": score(70 + value), **more}
    metrics = {metric: {"metric": metric, "steps": steps if metric == "efficacy" else 20} for metric in scores}
    document = {"format": FORMAT, "rows": {"erased": scores, "original": scores}, "protocol": {"metrics": metrics}}
    (folder / name).mkdir()
    (folder / name / "scores.json").write_text(json.dumps(document))
    return folder / name


def test_files_of_one_protocol_stand_side_by_side(tmp_path: Path) -> None:
    one, two = written(tmp_path, "one", 0.5), written(tmp_path, "two", 0.75) / "scores.json"
    found = compare_scores([one, two])
    assert not found.apart
    assert [found.scores["efficacy"][name]["value"] for name in found.files] == [0.5, 0.75]
    assert found.as_json()["files"] == [str(one), str(two)]
    cells = [list(column.cells) for column in found.table().columns]
    assert cells[0] == ["efficacy ↑", "clip score ↑"]
    assert cells[2][0] == "0.750\n[0.650, 0.850]\ncat\nn 40"
    assert list(compare_scores([one, two], ["clip_score"], "original").scores) == ["clip_score"]


def test_different_protocols_share_no_column(tmp_path: Path) -> None:
    files = [written(tmp_path, "one", 0.5), written(tmp_path, "two", 0.75, steps=50, fd=score(0.1))]
    found = compare_scores(files)
    assert list(found.scores) == ["clip_score"]
    assert "steps 20 against 50" in found.apart["efficacy"]
    assert "got none in" in found.apart["fd"]
    with pytest.raises(InputError, match=r"column 'efficacy': .*steps 20 against 50"):
        compare_scores(files, ["efficacy"])
    assert found.reasons.keys() == {found.apart["efficacy"], found.apart["fd"]}
    with pytest.raises(UnknownNameError, match=r"metric 'efficacies'. Did you mean 'efficacy'"):
        compare_scores(files, ["efficacies"])


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = written(tmp_path, "one", 0.5)
    for files in ([], [one], [one, one]):
        with pytest.raises(InputError, match="two or more different files"):
            compare_scores(files)
    with pytest.raises(InputError, match=r"nowhere: expected scores, got 'No such file or directory'\. Make them"):
        compare_scores([one, tmp_path / "nowhere"])
    with pytest.raises(InputError, match="expected a row 'gold', got erased, original"):
        compare_scores([one, written(tmp_path, "two", 0.5)], row="gold")
    alone = written(tmp_path, "alone", 0.5)
    data = json.loads((alone / "scores.json").read_text())
    for setup in data["protocol"]["metrics"].values():
        setup["original"] = "another"
    (alone / "scores.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"measured alike, got none\. efficacy: .*original '' against 'another'"):
        compare_scores([one, alone])
    other = tmp_path / "other.json"
    for text, match in (
        ("not json", "got something else"),
        ("[]", "got something else"),
        ('{"format": "erasure-scores/0"}', "expected format 'erasure-scores/1', got 'erasure-scores/0'"),
    ):
        other.write_text(text)
        with pytest.raises(InputError, match=match):
            compare_scores([one, other])
