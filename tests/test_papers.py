"""Every paper has a piece that is there, or a reason; every piece of a trained eraser has a verdict or none yet."""

import re
from inspect import getfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs.tables.pieces import LOOP, Paper, pieces, problems_of, read_papers
from erasure.cli.main import app
from erasure.cli.setup import extension_points
from erasure.errors import InputError
from erasure.runs.verdicts import NOT_MEASURED, SEAMS, read_verdicts, verdict, verdicts

PAPERS = read_papers()
ROOT = Path(__file__).parent.parent


def test_there_are_45_rows_in_order_each_of_its_own_paper() -> None:
    assert [paper.row for paper in PAPERS] == list(range(1, 46))
    assert len({paper.id for paper in PAPERS}) == 45
    assert all(re.fullmatch(r"\d{4}\.\d{5}", paper.id) for paper in PAPERS)
    assert all(paper.name and paper.mechanism for paper in PAPERS)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_a_paper_has_a_piece_of_an_extension_point_or_a_reason(paper: Paper) -> None:
    assert not list(problems_of(paper))


def test_a_row_without_either_fails_and_so_does_a_piece_that_is_not_there() -> None:
    empty = Paper(row=99, id="0000.00000", name="x", mechanism="y")
    assert list(problems_of(empty)) == ["row 99: expected a piece or a reason, got neither"]
    for place in ("term heeling", "loop steps", "nothing healing"):
        wrong = Paper(row=99, id="0000.00000", name="x", mechanism="y", pieces=(place,))
        assert list(problems_of(wrong)) == [f"row 99: expected a piece of an extension point, got {place!r}"]


def test_the_sources_of_pieces_are_those_of_their_rows() -> None:
    """A piece that a row names has the row's paper in its module."""
    points = extension_points()
    for paper in PAPERS[4:]:
        for place in paper.pieces:
            seam, _, name = place.partition(" ")
            if seam not in ("objective", "term", "transform", "finish"):
                continue
            kind = points[seam].get(name)
            text = Path(getfile(kind)).read_text(encoding="utf-8")
            named = paper.id in text or paper.name.partition(",")[0] in text or "view" in paper.reason
            assert named, f"row {paper.row}: {place} does not name {paper.id}"


def test_verdicts_are_read_strictly_and_name_pieces(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.csv"
    file.write_text('seam,piece,verdict\nterm,healing,"near +0.03 [0.01, 0.05], 1.2 x time, n = 6"\n')
    assert read_verdicts(file) == {("term", "healing"): "near +0.03 [0.01, 0.05], 1.2 x time, n = 6"}
    file.write_text("seam,name\n")
    with pytest.raises(InputError, match=r"verdicts\.csv"):
        read_verdicts(file)
    points = extension_points()
    for seam, name in verdicts():
        assert seam in SEAMS
        assert name in (LOOP if seam == "loop" else points[seam].names())


def test_every_piece_is_in_the_table_and_in_the_command() -> None:
    table = pieces("", ROOT)
    points = extension_points()
    for seam in SEAMS[:-1]:
        for name in points[seam].names():
            assert re.search(rf"\| {seam} \| `{name}` \| .+ \| .+ \| .+ \|", table)
    assert all(f"| loop | `{name}` |" in table for name in LOOP)
    printed = CliRunner().invoke(app, ["pieces", "healing"])
    assert f"Verdict: {verdict('term', 'healing')}." in " ".join(printed.output.split())
    assert verdict("term", "nothing") == NOT_MEASURED
