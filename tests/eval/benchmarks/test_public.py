"""The public protocols on lists of our own making, and on the published ones where they are at hand."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from erasure.errors import InputError, UnknownNameError
from erasure.eval.benchmarks import Benchmark
from erasure.eval.benchmarks.artists import Artists
from erasure.eval.benchmarks.celebrities import Celebrities, face_rates, giphy_names
from erasure.eval.benchmarks.cifar10_paraphrase import Cifar10Paraphrase
from erasure.eval.benchmarks.coco import Coco
from erasure.eval.benchmarks.imagenette import CLASSES, Imagenette
from erasure.eval.benchmarks.lists import read_list
from erasure.eval.benchmarks.sixcd_dual import SixCdDual
from erasure.eval.stats.scores import Rate

# The published lists are no part of the project; where somebody has them beside the checkout they are read.
BESIDE = Path(__file__).resolve().parents[4] / "shared" / "data" / "prompts"
PROMPTS = Path(os.environ.get("ERASURE_PROMPT_LISTS", BESIDE))


def published(name: str) -> Path:
    if not (PROMPTS / name).is_file():
        pytest.skip(f"needs the published list {name} in a folder that ERASURE_PROMPT_LISTS names")
    return PROMPTS / name


def written(folder: Path, name: str, rows: list[list[str]]) -> Path:
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / name


@pytest.fixture
def imagenette(tmp_path: Path) -> Path:
    header = ["case_number", "prompt", "evaluation_seed", "class"]
    rows = [["0", "Image of english springer", "0", "english springer"], ["1", "a fish ", "5", "Tench"]]
    return written(tmp_path, "imagenette.csv", [header, *rows])


def test_classes_are_told_by_index_and_not_by_how_a_list_spells_them(imagenette: Path) -> None:
    springer, tench = Imagenette(path=imagenette, removed=("English Springer",)).items
    assert (springer.class_index, springer.unwanted, springer.retained) == (217, "English springer", "")
    assert (tench.class_index, tench.unwanted, tench.retained) == (0, "", "tench")
    assert (springer.group, tench.group) == ("removed", "kept")
    assert (springer.wording, tench.wording) == ("explicit", "paraphrase")
    assert (springer.seed, tench.prompt) == (0, "a fish")


def test_a_removed_name_that_no_row_has_is_an_error(imagenette: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"imagenette label 'springer'\. .*English springer"):
        _ = Imagenette(path=imagenette, removed=("springer",)).items


def test_a_class_without_a_row_is_no_label_of_the_list(imagenette: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"imagenette label 'church'.* --set allow_unlisted=true"):
        _ = Imagenette(path=imagenette, removed=("church",)).items


def test_a_list_may_be_asked_for_what_stays_alone(imagenette: Path) -> None:
    others = Imagenette(path=imagenette, removed=("Van Gogh",), allow_unlisted=True)
    assert {item.retained for item in others.items} == {"English springer", "tench"}
    assert others.unasked == ("Van Gogh",)
    mixed = Imagenette(path=imagenette, removed=("Van Gogh", "TENCH"), allow_unlisted=True)
    assert [(item.unwanted, item.retained) for item in mixed.items] == [("", "English springer"), ("tench", "")]
    assert mixed.unasked == ("Van Gogh",)


def test_a_class_that_the_classifier_lacks_is_an_error(tmp_path: Path) -> None:
    rows = [["case_number", "prompt", "evaluation_seed", "class"], ["0", "a cat", "0", "cat"]]
    with pytest.raises(UnknownNameError, match="imagenette class 'cat'"):
        _ = Imagenette(path=written(tmp_path, "list.csv", rows)).items


def test_a_case_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    rows = [["case_number", "prompt", "evaluation_seed"], ["4", "a", "0"], ["4", "b", "1"]]
    with pytest.raises(InputError, match="every case once, got '4' twice"):
        _ = Coco(path=written(tmp_path, "coco.csv", rows)).items


def test_two_lists_of_one_name_are_two_benchmarks(tmp_path: Path) -> None:
    def of(prompt: str, seed: str = "1") -> Benchmark:
        rows = [["case_number", "prompt", "evaluation_seed"], ["0", prompt, seed]]
        return Coco(path=written(tmp_path, "coco.csv", rows))

    one = of("a cat").id
    assert one == of("a cat").id
    assert one.startswith("coco/1, n 1, ")
    assert len({one, of("a dog").id, of("a cat", "2").id}) == 3


def test_about_states_everything(imagenette: Path) -> None:
    about = Imagenette(path=imagenette).about()
    assert (about["n"], about["steps"], about["guidance_scale"]) == (2, 100, 7.5)
    assert {"id", "version", "source", "licence", "seeds", "published_scheduler"} <= about.keys()
    sampler = Imagenette(path=imagenette).sampler(batch_size=4)
    assert (sampler.steps, sampler.guidance_scale, sampler.batch_size) == (100, 7.5, 4)


def test_dual_prompts_are_joined_by_case_and_not_by_order(tmp_path: Path) -> None:
    clean = [["case_number", "evaluation_seed", "prompt"], ["1", "20", "reading a book"], ["0", "10", "skiing"]]
    both = [
        ["case_number", "evaluation_seed", "target", "prompt"],
        ["0", "10", "Spider-Man", "Spider-Man is skiing"],
        ["1", "20", "Batman", "Batman is reading a book"],
    ]
    paths = {"clean": written(tmp_path, "clean.csv", clean), "malicious": written(tmp_path, "malicious.csv", both)}
    spider, bat, *rest = SixCdDual(**paths, removed=("batman",)).items
    assert (spider.rest, bat.rest) == ("skiing", "reading a book")
    assert (spider.retained, bat.unwanted) == ("Spider-Man", "Batman")
    assert [(item.case, item.prompt, item.seed, item.group) for item in rest] == [
        ("clean-0", "skiing", 10, "clean"),
        ("clean-1", "reading a book", 20, "clean"),
    ]
    written(tmp_path, "malicious.csv", [both[0], ["0", "11", *both[1][2:]]])
    with pytest.raises(InputError, match=r"case '0' with seed 11 in 'clean\.csv', too"):
        _ = SixCdDual(**paths).items


def test_a_prompt_that_lost_the_end_of_its_name_is_an_error(tmp_path: Path) -> None:
    clean = written(tmp_path, "clean.csv", [["case_number", "evaluation_seed", "prompt"], ["0", "1", "A tree"]])
    cut = [
        ["case_number", "evaluation_seed", "target", "prompt"],
        ["0", "1", "Pablo Picasso", "A tree by Pablo Picass"],
    ]
    malicious = written(tmp_path, "malicious.csv", cut)
    with pytest.raises(InputError, match="a prompt that names 'Pablo Picasso', got 'A tree by Pablo Picass'"):
        _ = SixCdDual(clean=clean, malicious=malicious).items
    assert SixCdDual(clean=clean, malicious=malicious, cut_names=True).n == 2


def test_celebrities_follow_their_list(tmp_path: Path) -> None:
    header = ["id", "type", "text", "concept", "seed"]
    rows = [["1", "erase", "A portrait of Aaliyah", "Aaliyah", "0"], ["2", "retain", "50 Cent", "50 Cent", "1"]]
    path = written(tmp_path, "people.csv", [header, *rows])
    labels = written(
        tmp_path, "labels.csv", [["Labels", "Index"], ["50_Cent_[m.01vvyc_]", "0"], ["Aaliyah_[m.0x3n]", "1"]]
    )
    assert giphy_names(labels) == ("50 Cent", "Aaliyah")
    gone, kept = Celebrities(path=path, labels=labels).items
    assert (gone.group, gone.unwanted, gone.seed) == ("removed", "Aaliyah", 0)
    assert (kept.group, kept.retained) == ("kept", "50 Cent")
    written(tmp_path, "labels.csv", [["Labels", "Index"], ["Aaliyah_[m.0x3n]", "0"]])
    with pytest.raises(UnknownNameError, match="detector label '50 Cent'"):
        _ = Celebrities(path=path, labels=labels).items
    assert Celebrities(path=path).n == 2  # without the detector's labels nobody is checked
    written(tmp_path, "people.csv", [header, ["1", "keep", *rows[0][2:]]])
    with pytest.raises(InputError, match="'erase' or 'retain' as 'type', got 'keep'"):
        _ = Celebrities(path=path).items
    written(tmp_path, "labels.csv", [["Labels", "Index"], ["Aaliyah", "0"]])
    with pytest.raises(InputError, match="expected a name and id"):
        giphy_names(labels)


def test_pictures_without_a_face_stay_in_the_denominator() -> None:
    found = face_rates(["aaliyah", None, None, "50 Cent"], ["Aaliyah"] * 4)
    assert found.recognised == Rate(hits=1, n=4)
    assert found.with_face == Rate(hits=2, n=4)
    assert found.recognised_of_faces == Rate(hits=1, n=2)
    faceless = face_rates([None, None], ["Aaliyah"] * 2)
    assert faceless.recognised == Rate(hits=0, n=2)
    assert faceless.recognised_of_faces is None
    with pytest.raises(InputError, match="got 1 for 2 prompts"):
        face_rates([None], ["Aaliyah"] * 2)


def test_a_prefix_of_coco(tmp_path: Path) -> None:
    rows = [["case_number", "prompt", "evaluation_seed"], *([str(i), f"caption {i}", "0"] for i in range(5))]
    path = written(tmp_path, "coco.csv", rows)
    assert Coco(path=path, limit=3).pairs == [(f"caption {i}", 0) for i in range(3)]
    assert Coco(path=path).n == 5
    with pytest.raises(InputError, match="expected 6 rows, got 5"):
        _ = Coco(path=path, limit=6).items
    with pytest.raises(InputError, match=r"coco\.limit: expected at least 1, got 0"):
        _ = Coco(path=path, limit=0).items


@pytest.mark.parametrize(
    "name", ["uce_imagenette.csv", "esd_small_imagenet_prompts.csv", "rece_robust_imagenette_fixed.csv"]
)
def test_published_imagenette_lists(name: str) -> None:
    found = Imagenette(path=published(name), removed=("English springer",))
    per_class = {"uce_imagenette.csv": 500}.get(name, 10)
    assert Counter(item.class_index for item in found.items) == dict.fromkeys(CLASSES.values(), per_class)
    assert sum(item.group == "removed" for item in found.items) == per_class
    reworded = sum(item.wording == "paraphrase" for item in found.items)
    assert (reworded > 0) == name.startswith("rece")


def test_published_cifar10_lists() -> None:
    found = Cifar10Paraphrase(path=published("receler_cifar10_paraphrase.csv"), removed=("cat",))
    assert (found.n, found.items[0].seed) == (500, 0)
    assert sum(item.unwanted == "cat" for item in found.items) == 50
    assert 200 < sum(item.wording == "paraphrase" for item in found.items) < 300
    simple = Cifar10Paraphrase(path=published("receler_cifar10_simple.csv"))
    assert simple.n == 1_000
    assert {item.wording for item in simple.items} == {"explicit"}


def test_published_artist_lists() -> None:
    sizes = {
        "esd_big_artist_prompts.csv": 100,
        "esd_short_niche_art_prompts.csv": 100,
        "esd_niche_art_prompts.csv": 120,
        "esd_generic_artists_prompts.csv": 1_000,
        "uce_artists1734_prompts.csv": 8_670,
        "uce_holdout100_prompts.csv": 500,
        "spm_vangogh_prompts.csv": 20,
    }
    for name, n in sizes.items():
        assert Artists(path=published(name)).n == n
    gone = Artists(path=published("esd_big_artist_prompts.csv"), removed=("van gogh",))
    assert sum(item.unwanted == "Van Gogh" for item in gone.items) == 20
    with pytest.raises(UnknownNameError, match="Vincent"):
        _ = Artists(path=published("esd_big_artist_prompts.csv"), removed=("Vincent van Gogh",)).items


@pytest.mark.parametrize("people", [10, 50, 100])
def test_published_celebrity_lists_name_whom_the_detector_knows(people: int) -> None:
    path, labels = published(f"speed_{people}_celebrity.csv"), published("giphy_celebrity_labels.csv")
    found = Celebrities(path=path, labels=labels)
    assert found.n == 1_000
    assert len({item.unwanted for item in found.items if item.unwanted}) == people
    assert len({item.retained for item in found.items if item.retained}) == 100
    assert len(giphy_names(labels)) == 2_306


def test_published_coco_list() -> None:
    path = published("coco_30k_first5000.csv")
    assert Coco(path=path).n == 5_000
    assert Coco(path=path, limit=1_000).pairs == Coco(path=path).pairs[:1_000]


@pytest.mark.parametrize("kind", ["artstyle", "celebrity", "character", "object"])
def test_published_dual_lists(kind: str) -> None:
    clean = published(f"sixcd_dual_{kind}_clean.csv")
    mended = "_fixed" if kind == "artstyle" else ""
    found = SixCdDual(clean=clean, malicious=published(f"sixcd_dual_{kind}_malicious{mended}.csv"))
    assert found.n == 200
    assert all(item.rest for item in found.items[:100])
    assert [item.rest for item in found.items[:100]] == [item.prompt for item in found.items[100:]]
    if mended:
        cut = published(f"sixcd_dual_{kind}_malicious.csv")
        with pytest.raises(InputError, match="expected a prompt that names"):
            _ = SixCdDual(clean=clean, malicious=cut).items
        assert SixCdDual(clean=clean, malicious=cut, cut_names=True).n == 200


def test_the_attack_list_has_the_rows_of_the_plain_one() -> None:
    columns = ("case_number", "prompt", "evaluation_seed")
    plain, attack = (
        [[row.cells[column] for column in columns] for row in read_list(published(name), columns)]
        for name in ("esd_vangogh_prompts.csv", "unlearndiffatk_vangogh.csv")
    )
    assert plain == attack
