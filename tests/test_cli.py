"""The command, as a person or a script meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from erasure import Ledger, erase, tinyworld
from erasure.backbones import backbone_of
from erasure.cli.console import out
from erasure.cli.main import app
from erasure.erasers.uce import UCE
from erasure.profile import SamplingDefaults
from erasure.tinyworld.profile import TinyWorldProfile
from tests import tiny
from tests.eval import world

SMALL = [
    *(f"measure.{setting}" for setting in ("per_concept=2", "near=3", "far=4", "steps=1")),
    "eraser.rows=last-subject",
]
SMALL = [word for setting in SMALL for word in ("--set", setting)]
# The least that makes an entry.
DRAWN = ["generate", "tinyworld", "--prompt", "a cat", "--out", "a/b"]
FAST = ["--no-measure", "--set", "eraser.rows=last-subject"]


@pytest.fixture(autouse=True)
def untrained_tinyworld(monkeypatch, tmp_path):
    """Put an untrained tiny world in the place of the shipped one, and work in an empty folder."""
    monkeypatch.setattr(tinyworld, "load", lambda device="cpu", dtype=None: world.pipeline())
    monkeypatch.setattr(tinyworld, "load_oracle", lambda device="cpu": world.oracle())
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of the Stable Diffusion 1 classes with CLIP's own tokens, saved by diffusers."""
    folder = tmp_path_factory.mktemp("model")
    tiny.sd1(vocabulary="clip").save_pretrained(folder)
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def fails(*arguments: str | Path) -> str:
    """Return the one line that a call which must fail says."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def erasure(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "erasure.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_concepts_are_removed_one_after_another_and_reported(tmp_path) -> None:
    result = call("remove", "cat", "NEON", "--ledger", "here", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["ledger"] == "here"
    assert document["base"] == {"name": "tinyworld", "fingerprint": backbone_of(world.pipeline()).fingerprint()}
    assert [(step["id"], step["concepts"], step["method"]) for step in document["steps"]] == [
        ("001", ["cat"], "uce"),
        ("002", ["neon"], "uce"),
    ]
    for step in document["steps"]:
        assert 0 <= step["efficacy"] <= 1
        assert step["retention"].keys() == {"near", "far"}
        assert step["n"]["efficacy"] == 2
        assert step["seconds"] > 0
        assert len(step["interval"]["efficacy"]) == 2
    assert [len(step["removed"]) for step in document["steps"]] == [1, 2]
    assert "002 neon" in result.stderr
    assert Ledger.open(tmp_path / "here").verify(world.pipeline()) == []

    page = (tmp_path / document["report"]).read_text()
    assert "Removed: cat and neon" in page
    [curve] = re.findall(r"<svg[^>]*Erosion curve.*?</svg>", page, flags=re.DOTALL)
    assert curve.count("<circle") == 2 * 3  # after each removal, of what is gone, near and far
    assert page.count("data:image/png;base64,") > 3 * (2 * 2)
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert "http" not in page.replace("http-equiv", "")
    run = json.loads((tmp_path / "here" / "run.json").read_text())
    assert {"config", "versions", "device", "git", "seconds", "peak_mib"} <= run.keys()


def test_a_second_call_goes_on_where_the_ledger_stands(tmp_path) -> None:
    assert call("remove", "cat", "--ledger", "here", *SMALL).exit_code == 0
    originals = {file: file.stat().st_mtime_ns for file in (tmp_path / "here/pictures/original").iterdir()}
    result = call("remove", "cat", "gun", "--ledger", "here", *SMALL)
    assert result.exit_code == 0
    assert "cat: already removed" in result.stdout
    assert result.stdout.strip().splitlines()[-1] == "report: here/report.html"
    ledger = Ledger.open("here")
    assert [entry.concepts[0].target for entry in ledger.entries] == ["cat", "gun"]
    # An entry carries the list that it would have alone; the joint solve leaves out what stands removed.
    assert "cat" in ledger.entries[1].concepts[0].preserve
    assert all(file.stat().st_mtime_ns == then for file, then in originals.items())  # made once
    run = Path("here/run.json").read_bytes()
    assert [step["id"] for step in json.loads(run)["steps"]] == ["001", "002"]
    done = json.loads(call("remove", "gun", "--ledger", "here", "--json", *SMALL).stdout)
    assert Path("here/run.json").read_bytes() == run
    assert (done["steps"], done["already_removed"]) == ([], ["gun"])
    measure = Path("here/measures/002.json")
    measure.unlink()  # as after a kill while it was measured
    again = json.loads(call("remove", "cat", "gun", "--ledger", "here", "--json", *SMALL).stdout)
    assert ([step["id"] for step in again["steps"]], again["already_removed"]) == (["002"], ["cat", "gun"])
    steps = [json.loads(text)["steps"] for text in (run, Path("here/run.json").read_bytes())]
    assert steps[0][0] == steps[1][0]
    assert steps[0][1]["removed"] == steps[1][1]["removed"] == json.loads(measure.read_text())["removed"]


def test_undo_and_log_tell_what_stands(tmp_path) -> None:
    call("remove", "cat", "neon", "--ledger", "here", *FAST)
    assert "002 neon: undone. Standing: cat (001)." in call("undo", "here", "2").stdout
    entries = json.loads(call("log", "here", "--json").stdout)["entries"]
    assert [(entry["id"], entry["concepts"], entry["state"]) for entry in entries] == [
        ("001", ["cat"], "standing"),
        ("002", ["neon"], "undone"),
    ]
    assert {"method", "time", "settings", "seed", "sha256", "approximate"} <= entries[0].keys()
    assert "undone" in call("log", "here").stdout
    # What was undone may be removed again, as an entry of its own; the report speaks of what stands.
    assert call("remove", "neon", "--ledger", "here", *SMALL).exit_code == 0
    assert [entry.id for entry in Ledger.open("here").standing] == ["001", "003"]
    page = Path("here/report.html").read_text()
    assert "neon (002) was removed and taken back" in page


def test_undoing_beneath_a_trained_removal_tells_how_far_it_moved(tmp_path) -> None:
    call("remove", "cat", "--ledger", "here", *FAST)
    quick = ("--no-measure", "--set", "eraser.steps=1", "--set", "eraser.sample_steps=2")
    call("remove", "gun", "--ledger", "here", "--method", "esd", *quick)
    said = call("undo", "here", "1").stdout.split("\n")
    assert said[0] == "001 cat: undone. Standing: gun (002)."
    assert re.fullmatch(r"002: was trained .* an approximation stands\. The weights .* by \d+\.\d\d .*", said[1])
    assert call("undo", "here", "2").stdout == "002 gun: undone. Standing: nothing.\n"


def test_without_a_measure_it_only_removes(tmp_path) -> None:
    document = json.loads(call("remove", "cat", *FAST, "--json").stdout)
    assert document["ledger"] == "erasure-runs/cat"
    assert document["measure_skipped"] == "not asked for (--no-measure)"
    assert document["steps"][0]["efficacy"] is None
    assert not (tmp_path / "erasure-runs/cat/pictures").exists()
    assert "not asked for" in Path(document["report"]).read_text()
    again = json.loads(call("remove", "cat", *FAST, "--json").stdout)
    assert again["ledger"] == "erasure-runs/cat-2"


def test_a_list_of_requests_and_a_config_make_runs(tmp_path) -> None:
    (tmp_path / "list.csv").write_text("cat,dog\nneon,,watercolor;mosaic\n")
    call("remove", "--from", "list.csv", "--ledger", "listed", *FAST)
    first, second = (entry.concepts[0] for entry in Ledger.open("listed").entries)
    assert (first.target, first.anchor) == ("cat", "dog")
    assert (second.target, second.preserve) == ("neon", ("watercolor", "mosaic"))

    (tmp_path / "listed.yaml").write_text("model: tinyworld\nconcepts: list.csv\n")
    call("remove", "--config", "listed.yaml", "--anchor", "bird", "--kind", "style", "--ledger", "shared", *FAST)
    concepts = [entry.concepts[0] for entry in Ledger.open("shared").entries]
    assert [(each.target, each.anchor, each.kind) for each in concepts] == [
        ("cat", "dog", "style"),  # what a line of a list says goes before what all share
        ("neon", "bird", "style"),
    ]

    (tmp_path / "run.yaml").write_text(
        "model: tinyworld\neraser: {name: uce, reg: 0.25}\nconcepts:\n  - target: cat\nseed: 3\noutput: configured\n"
    )
    call("remove", "--config", "run.yaml", "--set", "eraser.preserve_scale=0.5", *FAST)
    (entry,) = Ledger.open("configured").entries
    assert (entry.seed, entry.settings["reg"], entry.settings["preserve_scale"]) == (3, 0.25, 0.5)
    call("remove", "gun", "--config", "run.yaml", "--ledger", "other", "--seed", "4", *FAST)
    (entry,) = Ledger.open("other").entries
    assert (entry.concepts[0].target, entry.seed, entry.settings["reg"]) == ("gun", 4, 0.25)


def test_a_budget_is_an_eraser(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text("eraser: {name: esd, steps: 3}\nconcepts: [{target: cat}]\n")
    call("remove", "--config", "run.yaml", "--budget", "instant", "--ledger", "instant", *FAST)
    call("remove", "cat", "--method", "uce", "--ledger", "named", *FAST)
    instant, named = (Ledger.open(name).entries[0] for name in ("instant", "named"))
    assert (instant.method, instant.settings) == (named.method, named.settings)

    images = {f"objective.{name}": 2 for name in ("images", "kept_images", "sample_steps")}
    small = {"steps": 1, "batch_size": 4, **images}
    changes = [part for key, value in small.items() for part in ("--set", f"eraser.parts.1.{key}={value}")]
    call("remove", "cat", "--budget", "minutes", "--anchor", "house", "--ledger", "minutes", *changes, "--no-measure")
    (entry,) = Ledger.open("minutes").entries
    closed, trained = entry.settings["parts"]
    assert (entry.method, closed["name"], trained["name"]) == ("stack", "uce", "absent")
    assert (trained["lr"], trained["objective"]["instead"]) == (3e-4, "anchor")  # the profile's, the budget's


def test_several_values_may_follow_one_option(tmp_path) -> None:
    call("remove", "cat", "--preserve", "dog", "car", "--anchor", "bird", "--ledger", "here", *FAST)
    (concept,) = Ledger.open("here").entries[0].concepts
    assert (concept.preserve, concept.anchor) == (("dog", "car"), "bird")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove", "rabit"], "erasure: Unknown concept of the tiny world 'rabit'. Did you mean 'rabbit'?"),
        (["remove", "cat", "--method", "ucee"], "erasure: Unknown eraser 'ucee'. Did you mean 'uce'?"),
        (["remove", "cat", "--budget", "minuets"], "erasure: Unknown budget 'minuets'. Did you mean 'minutes'?"),
        (["remove", "cat", "--budget", "instant", "--method", "uce"], "expected --method or --budget, got both"),
        (["remove", "cat", "--set", "eraser.rge=1"], "Unknown key 'rge'. Did you mean 'reg'?"),
        (["remove", "cat", "--set", "eraser.reg=-1"], "eraser.reg: expected a number greater than 0, got -1."),
        (
            ["remove", "cat", "--set", "nonsense"],
            "--set: expected key.key=value, got 'nonsense'. Write for example eraser.reg=0.5.",
        ),
        (["remove", "cat", "--kind", "animal"], "concepts.0.kind: expected"),
        (["remove", "cat", "--anchor", "cat"], "concepts.0.anchor: expected another concept"),
        (["remove", "cat", "--device", "gpu"], "device: expected one that this machine has, got 'gpu'."),
        (["remove"], "remove: expected at least one concept, got none."),
        (["remove", "--from", "nowhere.csv"], "--from: expected a file to read, got 'nowhere.csv'"),
        (["remove", "cat", "--config", "nowhere.yaml"], "config: expected a file to read"),
        (["remove", "cat", "--model", "."], "model: expected a folder with a model_index.json"),
        (["log", "nowhere"], "ledger: expected a folder with a ledger.json, got 'nowhere'."),
        (["undo", "nowhere", "1"], "expected a folder with a ledger.json"),
        (["verify", "nowhere"], "expected a folder with a ledger.json"),
        (["generate", "nowhere", "--prompt", "a", "--out", "x"], "model: expected 'tinyworld', a folder or a Hub id"),
        (["generate", "tinyworld", "--prompt", "a", "--out", "x", "--seeds", "a"], "--seeds: expected whole numbers"),
        ([*DRAWN, "--seeds", "0", "--steps", "2000"], "steps: expected 1 to 1000"),
        ([*DRAWN, "--guidance-scale", "1e300"], "expected a number less than or equal to 1000"),
        (
            ["remove", "cat", "--budget", "minutes", "--set", "eraser.steps=-1"],
            "Known: name, parts. It is a stack: set those of a part, such as eraser.parts.0.steps.",
        ),
        (
            ["remove", "cat", "--budget", "minutes", "--set", "eraser.parts.0.steps=-1"],
            "Unknown uce setting 'steps'.",
        ),
        (["remove", "cat", "--seed", "x"], "Invalid value for '--seed': expected an integer, got 'x'. See `"),
        (["remove", "cat", "--seed=-1"], "expected a number greater than or equal to 0, got '-1'. See `"),
        (["remove", "cat", "--out", ""], "Invalid value for '--out': expected a path, got ''. See `"),
        (["audit", "nowhere", "--probe"], " audit --help`."),
        ([*DRAWN, "--steps", "0"], "expected a number greater than or equal to 1"),
        (["attention", "tinyworld", "--prompt", "a cat", "--concepts", "dog", "--out", "a/b/x.png"], "'dog'"),
        (["remove", "cat", "--ledger", "a/b/here", "--set", "measure.guidance_scale=1e4"], "to 1000"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_leaves_nothing(tmp_path, arguments, message) -> None:
    assert message in fails(*arguments)
    assert [path.name for path in tmp_path.rglob("*")] == []


def test_a_ledger_of_another_base_is_refused(tmp_path, saved) -> None:
    call("remove", "cat", "--ledger", "here", *FAST)
    before = Path("here/ledger.json").read_bytes()
    message = fails("remove", "dog", "--ledger", "here", "--model", saved)
    assert "expected its base 'tinyworld'" in message
    assert Path("here/ledger.json").read_bytes() == before


def test_verify_exits_with_1_and_names_what_is_wrong(tmp_path) -> None:
    call("remove", "cat", "--ledger", "here", *FAST)
    good = call("verify", "here")
    assert (good.exit_code, good.stdout) == (0, "verified: 1 removal, files, replay and base are as recorded.\n")
    (file,) = Path("here/edits").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    bad = call("verify", "here")
    assert bad.exit_code == 1
    assert "expected the file with sha256" in bad.stdout


def test_generate_makes_every_prompt_with_every_seed(tmp_path) -> None:
    call("remove", "cat", "--ledger", "here", *FAST)
    arguments = ["--prompt", "a cat", "a dog", "--seeds", "0,2-3", "--steps", "1"]
    result = call("generate", "here", *arguments, "--out", "edited")
    assert result.exit_code == 0, result.output
    names = {"a-cat-0.png", "a-cat-2.png", "a-cat-3.png", "a-dog-0.png", "a-dog-2.png", "a-dog-3.png"}
    assert {file.name for file in Path("edited").iterdir()} == names
    assert set(result.stdout.split()) == {f"edited/{name}" for name in names}
    call("generate", "tinyworld", *arguments, "--out", "plain")
    assert Path("plain/a-cat-0.png").read_bytes() != Path("edited/a-cat-0.png").read_bytes()
    assert Image.open("plain/a-cat-0.png").size == (64, 64)


def test_attention_draws_the_words_of_a_prompt_before_and_after_a_star() -> None:
    asked = ("--prompt", "a cat and a dog", "--steps", "2", "--columns", "2", "--out", "maps.png")
    result = call("attention", "tinyworld", "--concepts", "cat, dog", *asked)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == ["maps.png"]
    with Image.open("maps.png") as sheet:
        both = sheet.size
    assert call("attention", "tinyworld", "--concepts", "cat,dog", *asked, "--alpha", "0").exit_code == 0
    with Image.open("maps.png") as sheet:
        assert sheet.size[0] == both[0]
        assert sheet.size[1] < both[1]
    wrong = call("attention", "tinyworld", "--concepts", "rocket", *asked)
    assert wrong.exit_code == 2
    assert "got 'rocket'" in wrong.stderr


def test_compare_sets_the_original_beside_every_removal(tmp_path) -> None:
    call("remove", "cat", "gun", "--ledger", "here", *FAST)
    result = call("compare", "here", "--prompt", "a cat", "--seeds", "0,1", "--steps", "1", "--out", "all.png")
    assert (result.exit_code, result.stdout) == (0, "all.png\n")
    width, height = Image.open("all.png").size
    assert width > 3 * 192
    assert height > 2 * 192


def test_the_lists_name_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"eraser.preserve_scale={UCE().preserve_scale}" in call("methods", "uce").stdout
    for columns in (60, 160):  # paragraphs, and a table
        monkeypatch.setattr(out, "width", columns)
        assert "map of text states" in call("methods").stdout
    assert "Did you mean 'uce'" in fails("methods", "ucee")
    assert "tinyworld" in call("models").stdout
    result = call("doctor")
    assert result.exit_code == 0
    assert "torch" in result.stdout


def test_a_model_folder_is_edited_saved_reloaded_and_undone_bit_for_bit(tmp_path, saved) -> None:
    done = call("remove", "Van Gogh", "--kind", "style", "--model", saved, "--ledger", "here", "--json", *SMALL)
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert "no CLIP weights" in document["measure_skipped"]
    assert document["base"]["name"] == str(saved)
    assert "data:image/png" in Path(document["report"]).read_text()
    assert call("verify", "here").exit_code == 0

    def made(source: Path | str, folder: str) -> bytes:
        prompt = "a tree by Van Gogh"
        assert call("generate", source, "--prompt", prompt, "--steps", "2", "--out", folder).exit_code == 0
        (image,) = Path(folder).glob("a-tree-by-van-gogh*-0.png")
        return Image.open(image).tobytes()

    before, removed = made(saved, "before"), made("here", "removed")
    assert call("undo", "here", "001").exit_code == 0
    assert made("here", "undone") == before
    assert removed != before


def test_a_removal_during_sampling_is_measured_reported_and_undone() -> None:
    result = call("remove", "cat", "--method", "localised", "--ledger", "here", *SMALL[:-2], "--json")
    assert result.exit_code == 0, result.output
    (step,) = json.loads(result.stdout)["steps"]
    assert step["n"]["efficacy"] == 2
    assert 0 < step["n"]["near"] <= 3
    assert 0 < step["n"]["far"] <= 4
    assert 0 <= step["efficacy"] <= 1
    assert Path("here/report.html").is_file()
    assert "localised" in call("log", "here").stdout
    assert call("undo", "here", "001").exit_code == 0
    assert Ledger.open("here").standing == ()


def test_a_failed_command_leaves_no_ledger_that_it_started(tmp_path, saved) -> None:
    Path("circle.csv").write_text("target,anchor\ncat,dog\ndog,cat\n")
    Path("empty").mkdir()
    for folder in ("new", "empty", "a/b/new"):
        result = call("remove", "--from", "circle.csv", "--ledger", folder, *FAST)
        assert (result.exit_code, result.stderr.count("a circle")) == (2, 1), result.stderr
    assert not Path("new").exists()
    assert not Path("a").exists()
    assert list(Path("empty").iterdir()) == []
    erase(tiny.sd1(), "cat", eraser=UCE(rows="last-subject")).save("other.safetensors")
    assert "base" in fails("load-edit", "other.safetensors", "--ledger", "new")
    assert not Path("new").exists()
    call("remove", "cat", "--ledger", "source", *FAST)
    assert "the same family" in fails("replay", "source", "--model", saved, "--ledger", "a/replayed")
    assert not Path("a").exists()
    started = Ledger.create("before", backbone_of(world.pipeline()).fingerprint(), "tinyworld")
    assert call("remove", "--from", "circle.csv", "--ledger", "before", *FAST).exit_code == 2
    assert Ledger.open("before").entries == started.entries == ()


def test_ctrl_c_leaves_what_was_finished_and_says_one_line(tmp_path, saved) -> None:
    assert call("remove", "dog", "--model", saved, "--ledger", "here", *FAST).exit_code == 0
    command = [
        sys.executable,
        "-m",
        "erasure.cli",
        "remove",
        "cat",
        "--method",
        "esd",
        "--set",
        "eraser.steps=1000000",
    ]
    command += ["--model", str(saved), "--ledger", "here", "--no-measure"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # what it is about to remove
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2
    assert out == ""
    assert [line for line in err.splitlines() if line.strip()][-1].startswith("erasure: Interrupted.")
    assert "Traceback" not in err
    ledger = Ledger.open("here")
    assert [entry.concepts[0].target for entry in ledger.entries] == ["dog"]
    assert len(list(Path("here/edits").iterdir())) == 1


def test_help_needs_neither_torch_nor_time() -> None:
    code = "import sys, erasure.cli.main; print(sorted({'torch', 'diffusers', 'pydantic', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    seconds = []
    for _ in range(3):
        before = os.times().children_user + os.times().children_system
        assert erasure("--help").returncode == 0
        seconds.append(os.times().children_user + os.times().children_system - before)
    assert min(seconds) < 0.7  # of processor time: what others do on the machine does not count


def test_evaluate_takes_no_option_that_does_nothing(tmp_path) -> None:
    (tmp_path / "coco.csv").write_text("case_number,prompt,evaluation_seed\n0,a cat,0\n")
    model = ("evaluate", "tinyworld", "--removed", "cat")
    coco = (*model, "--benchmark", "coco", "--list", "coco.csv")
    assert "--suite: expected none for coco, got 'nonsense'" in fails(*coco, "--suite", "nonsense")
    assert "expected 2 rows, got 1" in fails(*coco, "--set", "limit=2")
    assert "--classifier: expected none for coco" in fails(*coco, "--classifier", "someone/classifier")
    assert "Unknown suite 'nonsense'" in fails(*model, "--suite", "nonsense")
    assert "expected 0 --list for tinyworld, got 1" in fails(*model, "--list", "coco.csv")


def test_what_a_ledger_records_is_not_given_again(tmp_path) -> None:
    call("remove", "cat", "--ledger", "here", *FAST)
    attack = ("attack", "here", "--attack", "ring-a-bell")
    assert "--removed: expected none for a ledger" in fails("evaluate", "here", "--removed", "dog")
    assert "--original: expected none for a ledger" in fails("audit", "here", "--original", "tinyworld")
    assert "--original: expected none for a ledger" in fails(*attack, "--original", "tinyworld")


def test_a_place_that_cannot_be_written_is_refused_before_an_image_is_made(tmp_path, monkeypatch) -> None:
    def sample_pairs(*arguments: object) -> None:
        raise AssertionError("images were made")

    call("remove", "cat", "--ledger", "here", *FAST)
    Path("file").write_text("")
    monkeypatch.setattr("erasure.sampling.sample_pairs", sample_pairs)
    prompts = ("--prompt", "a cat")
    assert "here: expected a file to write, got a folder" in fails("compare", "here", *prompts, "--out", "here")
    words = ("--prompt", "a cat", "--concepts", "cat")
    assert "here: expected a file to write, got a folder" in fails("attention", "here", *words, "--out", "here")
    assert "file: expected a folder that can be written" in fails("generate", "here", *prompts, "--out", "file")
    assert "file: expected a folder that can be written" in fails("evaluate", "here", "--out", "file")
    assert "file: expected a folder that can be written" in fails("audit", "here", "--out", "file")


def test_an_evaluation_prints_one_document_or_a_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(TinyWorldProfile, "sampling", SamplingDefaults(steps=2, guidance_scale=2.0))
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    call("remove", "cat", "--ledger", "here", *FAST)
    result = call("evaluate", "here", "--set", "total=12", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {"format", "protocol", "rows", "concepts", "differences", "skipped", "warnings"} <= document.keys()
    assert list(document["rows"]) == ["erased", "original", "negative_prompt", "destroyed"]
    for row in document["rows"].values():
        assert {"value", "n", "low", "high", "unit", "higher_is_better"} <= row["efficacy"].keys()
        assert row["efficacy"]["concept"] == "cat"
    assert document["protocol"]["benchmark"]["settings"] == {"removed": ["cat"], "total": 12, "seed": 0}
    scores = Path(document.pop("scores"))
    assert Path(document.pop("report")).read_text().startswith("<!doctype html>")
    assert scores.parent.parent == Path("here/evaluations")
    assert json.loads(scores.read_text()) == document
    printed = call("evaluate", "here", "--set", "total=12", "--out", "there")
    assert printed.exit_code == 0
    assert "efficacy ↑" in printed.stdout
    assert "not computed: fd, kid: " in printed.stdout
    assert printed.stdout.strip().splitlines()[-2:] == ["scores: there/scores.json", "report: there/report.html"]


def test_scores_of_two_evaluations_stand_side_by_side(tmp_path) -> None:
    def written(name: str, value: float, steps: int) -> str:
        score = {"value": value, "n": 40, "low": 0.0, "high": 1.0, "higher_is_better": True}
        metrics = {"joint": {"metric": "joint"}, "shown": {"metric": "shown", "steps": steps}}
        document = {
            "format": "erasure-scores/1",
            "rows": {"erased": {"joint": score, "shown": score}},
            "protocol": {"metrics": metrics},
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(document))
        return name

    files = [written("uce", 0.5, 20), written("esd", 0.25, 50)]
    printed = call("scores", *files)
    assert printed.exit_code == 0
    assert "joint ↑" in printed.stdout
    assert "not compared: shown: expected scores of one protocol" in printed.stdout
    document = json.loads(call("scores", *files, "--json").stdout)
    assert [document["scores"]["joint"][name]["value"] for name in files] == [0.5, 0.25]
    assert "steps 20 against 50" in fails("scores", *files, "--metric", "shown")
    assert "two or more different files" in fails("scores", "uce")


@pytest.mark.parametrize("name", ["run.json", "report.html", "measures", "pictures"])
def test_a_result_that_cannot_be_written_is_found_before_anything_is_recorded(tmp_path, saved, name) -> None:
    call("remove", "cat", "--model", saved, "--ledger", "ledger", *FAST)
    place = tmp_path / "ledger" / name
    place.unlink(missing_ok=True)
    place.mkdir() if "." in name else place.touch()
    assert f"{name}: expected the place of a" in fails("remove", "dog", "--ledger", "ledger", *FAST)
    assert len(Ledger.open("ledger").entries) == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("evaluate", "tinyworld", "--removed", "cat", "--out", "out"), "scores.json"),
        (("compare", "ledger", "--prompt", "a cat", "--out", "out/image.png"), "image.png"),
        (("attention", "tinyworld", "--prompt", "a cat", "--concepts", "cat", "--out", "out/maps.png"), "maps.png"),
    ],
)
def test_a_place_that_is_taken_is_found_before_the_work(tmp_path, saved, monkeypatch, arguments, name) -> None:
    call("remove", "cat", "--model", saved, "--ledger", "ledger", *FAST)
    (tmp_path / "out" / name).mkdir(parents=True)
    monkeypatch.setattr("erasure.sampling.images.sample", None)
    assert re.search(rf"{name}: expected .* file.*, got a folder", fails(*arguments))
