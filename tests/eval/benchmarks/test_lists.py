"""Prompt lists are read as they are: no word is nothing, no row is lost or shifted."""

from pathlib import Path

import pytest

from erasure.errors import InputError
from erasure.eval.benchmarks.coco import Coco
from erasure.eval.benchmarks.imagenette import Imagenette
from erasure.eval.benchmarks.lists import read_list

COLUMNS = ("case_number", "prompt", "evaluation_seed")


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_what_a_table_reader_would_take_for_nothing_is_a_prompt(tmp_path: Path) -> None:
    prompts = ["Null", "nan", "None", "NA", "a cat"]
    text = "case_number,prompt,evaluation_seed\n" + "".join(f"{i},{p},0\n" for i, p in enumerate(prompts))
    rows = read_list(written(tmp_path, text), COLUMNS)
    assert [row.text("prompt") for row in rows] == prompts
    assert [row.whole("evaluation_seed") for row in rows] == [0] * 5  # seed 0 is a seed


def test_commas_quotes_line_breaks_and_blanks(tmp_path: Path) -> None:
    text = (
        "\ufeff,case_number, prompt ,evaluation_seed\r\n"
        '0,0,"a cat, a dog",1\r\n'
        '1,1,"two\nlines ",2\r\n'
        "\r\n"
        '2,2,"a ""quoted"" word",3\r\n'
        "3,3,  blanks around   ,4"
    )
    rows = read_list(written(tmp_path, text), COLUMNS)
    assert [row.text("prompt") for row in rows] == ["a cat, a dog", "two\nlines", 'a "quoted" word', "blanks around"]
    assert [row.whole("evaluation_seed") for row in rows] == [1, 2, 3, 4]
    assert [row.text("case_number") for row in rows] == ["0", "1", "2", "3"]


def test_two_loaders_agree_on_row_i(tmp_path: Path) -> None:
    # The same rows as an attack's list has them: other columns, another order of them, a named index.
    plain = "case_number,prompt,evaluation_seed\n7,Null,0\n3,a cat,12\n5,a dog,4\n"
    header = "Unnamed: 0,evaluation_seed,prompt,evaluation_guidance,case_number\n"
    attack = header + "0,0,Null,7.5,7\n1,12,a cat,7.5,3\n2,4,a dog,7.5,5\n"
    cells = []
    for text in (plain, attack):
        rows = read_list(written(tmp_path, text), COLUMNS)
        cells.append([[row.cells[column] for column in COLUMNS] for row in rows])
    assert cells[0] == cells[1] == [["7", "Null", "0"], ["3", "a cat", "12"], ["5", "a dog", "4"]]


def test_the_first_rows_only(tmp_path: Path) -> None:
    path = written(tmp_path, "case_number,prompt,evaluation_seed\n0,a,0\n1,b,1\n2,c,2\n")
    assert [row.text("prompt") for row in read_list(path, COLUMNS, limit=2)] == ["a", "b"]
    with pytest.raises(InputError, match=r"list\.csv: expected 4 rows, got 3"):
        read_list(path, COLUMNS, limit=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_number,prompt,evaluation_seed\n0,a cat, a dog,1\n", "line 2: expected 3 cells, got 4"),
        ("case_number,prompt,evaluation_seed\n0,a cat\n", "line 2: expected 3 cells, got 2"),
        ("case_number,text,evaluation_seed\n0,a cat,1\n", "expected a column 'prompt', got 'case_number', 'text'"),
        ("case_number,prompt,evaluation_seed\n", "expected rows, got 0"),
        ("", "expected a column 'case_number', got"),
        ('case_number,prompt,evaluation_seed\n0,"a cat,1\n', "expected CSV in UTF-8"),
    ],
)
def test_a_list_that_does_not_parse_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_list(written(tmp_path, text), COLUMNS)


def test_another_encoding_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    path = written(tmp_path, "case_number,prompt,evaluation_seed\n0,Café,1\n", encoding="latin-1")
    with pytest.raises(InputError, match="expected CSV in UTF-8"):
        read_list(path, COLUMNS)
    with pytest.raises(InputError, match="No such file"):
        read_list(tmp_path / "none.csv", COLUMNS)


def test_cells_that_cannot_be_used(tmp_path: Path) -> None:
    (row,) = read_list(written(tmp_path, "case_number,prompt,evaluation_seed\n0,  ,12.0\n"), COLUMNS)
    with pytest.raises(InputError, match=r"list\.csv line 2: expected a text as 'prompt', got an empty one"):
        row.text("prompt")
    for cell in ("12.0", "-1", "", "²"):
        (row,) = read_list(written(tmp_path, f"case_number,prompt,evaluation_seed\n0,a,{cell}\n"), COLUMNS)
        with pytest.raises(InputError, match="whole number from 0 on as 'evaluation_seed'"):
            row.whole("evaluation_seed")


def test_a_list_without_case_number_has_its_cases_in_the_column_that_names_the_images(tmp_path: Path) -> None:
    text = "image_id,source,prompt,evaluation_seed\n000000203564,coco-30k,A bicycle.,41337\n"
    (item,) = Coco(path=written(tmp_path, text)).items
    assert (item.case, item.prompt, item.seed) == ("000000203564", "A bicycle.", 41337)
    (row,) = read_list(written(tmp_path, "case_number,coco_id,prompt,evaluation_seed\n0,9,a,1\n"), COLUMNS)
    assert row.text("case_number") == "0"


def test_unquoted_commas_of_a_published_list_belong_to_the_prompt(tmp_path: Path) -> None:
    lines = ["0,In a cozy cafe, the melodies, of a cassette player,4001,cassette player", '1,"a tench, big",7,tench']
    path = written(tmp_path, "\n".join(["case_number,prompt,evaluation_seed,class", *lines]))
    assert [(item.prompt, item.seed) for item in Imagenette(path=path).items] == [
        ("In a cozy cafe, the melodies, of a cassette player", 4001),
        ("a tench, big", 7),
    ]
    path = written(tmp_path, "case_number,prompt,evaluation_seed,class\n0,a tench,7,tench,fish\n")
    with pytest.raises(InputError, match=r"line 2: expected 4 cells, got 5\. Quote cells that hold a comma"):
        Imagenette(path=path).read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_number;prompt;evaluation_seed\n0;a cat;1\n", "line 1: .*Separate cells by commas, not semicolons"),
        ("case_number\tprompt\tevaluation_seed\n0\ta\t1\n", "line 1: .*Separate cells by commas, not tabs"),
        (
            "case_number,prompt,prompt,evaluation_seed\n0,a,b,1\n",
            "line 1: expected each column once, got 'prompt' twice",
        ),
        ('case_number,prompt,evaluation_seed\n0,a,1\n1,"b,2\n2,c,3\n', "line 3: .*a quote that is not closed"),
        ('case_number,prompt,evaluation_seed\n0,"a"b,1\n', "line 2: expected CSV"),
    ],
)
def test_a_heading_or_a_quote_that_is_wrong_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_list(written(tmp_path, text), COLUMNS)
