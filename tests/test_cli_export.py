"""`erasure export`, `replay` and `load-edit`, as a person or a script meets them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from erasure import UCE, Edit, Ledger, erase, load_model, tinyworld
from erasure.cli.main import app
from tests import tiny
from tests.eval import world
from tests.pipelines.hub_server import serving
from tests.test_cli import SMALL, erasure, fails

FAST = ["--no-measure", "--set", "eraser.rows=last-subject"]


@pytest.fixture(autouse=True)
def untrained_tinyworld(monkeypatch, tmp_path):
    """Put an untrained tiny world in the place of the shipped one, and work in an empty folder."""
    monkeypatch.setattr(tinyworld, "load", lambda device="cpu", dtype=None: world.pipeline())
    monkeypatch.setattr(tinyworld, "load_oracle", lambda device="cpu": world.oracle())
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of the Stable Diffusion 1 classes with CLIP's own tokens and a card, saved by diffusers."""
    folder = tmp_path_factory.mktemp("models") / "some-model"
    tiny.sd1(vocabulary="clip").save_pretrained(folder)
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: Open Terms\nlicense_link: https://terms\n---\n"
    )
    return folder


@pytest.fixture
def ledger(saved: Path, tmp_path: Path) -> Path:
    """A ledger of that model without cats."""
    call("remove", "cat", "--model", saved, "--preserve", "dog", "--ledger", "here", *FAST)
    return tmp_path / "here"


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def test_an_export_ends_with_what_to_load(ledger: Path) -> None:
    lines = call("export", ledger, "out", "--format", "edit", "--steps", "1").stdout.splitlines()
    assert lines == ["card: out/README.md", "edit: out/edit.safetensors"]
    assert {path.name for path in Path("out").iterdir()} == {
        "README.md",
        "before-after.png",
        "edit.safetensors",
        "erasure.json",
    }
    assert Edit.load("out/edit.safetensors").metadata.concepts[0].target == "cat"
    with Image.open("out/before-after.png") as picture:
        assert picture.height > 2 * 192  # two rows: the cat that goes and the dog that stays


def test_json_is_one_document(ledger: Path) -> None:
    assert "--prompt: expected none with --no-images" in fails("export", ledger, "x", "--no-images", "--prompt", "cat")
    document = json.loads(call("export", ledger, "out", "--format", "lora", "--no-images", "--json").stdout)
    assert document["load"] == "out/pytorch_lora_weights.safetensors"
    assert document["notes"] == []
    assert not Path("out/before-after.png").exists()
    record = json.loads(Path(document["record"]).read_text())
    assert record["files"].keys() == {"README.md", "pytorch_lora_weights.safetensors"}
    assert record["state"] == Ledger.open(ledger).state()


def test_the_card_says_what_was_removed_and_carries_the_licence(ledger: Path, saved: Path) -> None:
    call("export", ledger, "out", "--format", "pipeline", "--no-images")
    card = card_of(Path("out"))
    data = card.data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "Open Terms", "https://terms")
    assert "base_model" not in data  # a folder is no model of the Hub
    assert str(saved.parent) not in (Path("out") / "README.md").read_text()
    assert "# some-model without cat" in card.text
    assert '| cat (object) | – | nothing | dog | uce | `rows="last-subject"' in card.text
    assert "## What was measured\n\nNothing." in card.text
    assert "- Whether what was removed is gone." in card.text
    assert "no attack was run, and no audit made" in card.text
    assert "## Audit\n\nNone was made of what stands" in card.text
    assert 'DiffusionPipeline.from_pretrained("out", dtype=torch.float32)' in card.text
    assert "[Open Terms](https://terms)" in card.text


def audit_record(time: str, dose: str) -> dict[str, Any]:
    """Return what `erasure audit` writes, cut to what a card shows."""
    residue = {"value": 0.5, "low": 0.25, "high": 0.75, "confidence": 0.95}
    rows = {"erased": {"mean": 0.4, "kept": 0.9}, "original": {"mean": 0.8, "kept": 1.0}}
    reading = {"part": "", "label": dose, "residue": residue, "difference": None, "rows": rows}
    side = {**reading, "part": "ghost", "residue": None, "difference": {"value": 0.1, "low": 0.02, "high": 0.2}}
    measured = {"access": "image", "status": "measured", "reason": "", "readings": [reading], "strongest": 0}
    probes = {
        "hand-over": measured,
        "priming": {**measured, "access": "inside", "readings": [side], "strongest": None},
        "mma": {**measured, "access": "prompt", "status": "failed", "reason": "no kernel | for it", "readings": []},
    }
    concept = {"concept": "cat", "gold": "", "verdict": "Cat is not gone.", "untested": ["prune"], "probes": probes}
    return {"suite": "quick", "judge": "the oracle", "time": time, "concepts": [concept]}


def test_the_card_carries_the_last_audit_of_what_stands(ledger: Path) -> None:
    state = Ledger.open(ledger).state()
    narrow = audit_record("2026-02-01T00:00:00+00:00", "of one probe")
    del narrow["concepts"][0]["probes"]["priming"]
    for folder, record in (
        (f"quick-{state}", audit_record("2026-01-02T00:00:00+00:00", "10 of 25 steps")),
        (f"full-{state}", audit_record("2026-01-01T00:00:00+00:00", "an older one")),
        ("quick-0123456789abcdef", audit_record("2027-01-01T00:00:00+00:00", "of another state")),
        (f"narrow-{state}", narrow),
    ):
        (ledger / "audits" / folder).mkdir(parents=True)
        (ledger / "audits" / folder / "audit.json").write_text(json.dumps(record))
    (ledger / "audits" / f"standard-{state}").mkdir()
    (ledger / "audits" / f"standard-{state}" / "audit.json").write_text('{"suite": 3}')
    call("export", ledger, "out", "--format", "edit", "--no-images")
    text = card_of(Path("out")).text
    assert "**cat.** Cat is not gone." in text
    assert "| hand-over | image | 10 of 25 steps | 0.50 \\[0.25, 0.75\\] | 0.40 | 0.80 | 0.90 |" in text
    assert "| priming | inside | ghost, 10 of 25 steps | +0.10 \\[+0.02, +0.20\\], a side effect |" in text
    assert "| mma | prompt | not measured: no kernel \\| for it |" in text
    assert "Not tested: prune." in text
    assert "an older one" not in text
    assert "of another state" not in text
    assert "no attack was run" not in text
    assert "What further training" in text, "no relearning in this audit"


def test_the_card_has_what_was_measured_of_what_stands() -> None:
    call("remove", "cat", "--ledger", "here", *SMALL)
    opened = Ledger.open("here")
    setup = {"metric": "fd", "benchmark": "tinyworld/1"}
    score = {"value": 0.25, "low": 0.125, "high": 0.5, "n": 40, "unit": "distance", "higher_is_better": False}
    scores = {
        "format": "erasure-scores/1",
        "protocol": {
            "benchmark": {"id": "tinyworld/1, n 40"},
            "rows": {"erased": "here: 001 by uce"},
            "metrics": {"fd": setup},
        },
        "rows": {"erased": {"fd": score}, "original": {"fd": {**score, "value": 0.0625}}},
    }
    rate = {"value": 0.5, "interval": [0.25, 0.75], "n": 4}
    attack = {
        "protocol": {"attack": {"name": "mma"}, "witness": "the oracle"},
        "rows": {row: {"success": [rate]} for row in ("attacked", "plain prompt", "attack on the original")},
    }
    for path, content in (
        (f"here/attacks/mma-{opened.state()}/attack.json", attack),
        ("here/evaluations/one/scores.json", scores),
        (
            "here/evaluations/old/scores.json",
            {**scores, "protocol": {**scores["protocol"], "rows": {"erased": "x: 9"}}},
        ),
    ):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text(json.dumps(content))
    call("export", "here", "out", "--format", "edit", "--no-images")
    card = card_of(Path("out"))
    assert card.text.count("| fd | 0.250 [0.125, 0.500] | 0.062 | 40 | distance | tinyworld/1, n 40 |") == 1
    assert "| attack mma, attacked: brought back | 0.500 [0.250, 0.750] | 0.500 | 4 |" in card.text
    assert "| efficacy, cat |" in card.text
    assert "no attack was run" not in card.text
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {"efficacy", "retention_near", "retention_far", "fd"} <= results.keys()
    assert results["fd"].metric_args == {"interval": [0.125, 0.5], "n": 40, "unit": "distance", "setup": setup}
    assert card.data.license == "apache-2.0"

    # Once something else stands, the old numbers say nothing of it.
    call("remove", "gun", "--ledger", "here", *FAST)
    call("export", "here", "again", "--format", "edit", "--no-images")
    assert "## What was measured\n\nNothing." in card_of(Path("again")).text


def test_a_card_shows_nothing_unsafe(saved: Path) -> None:
    call("remove", "gore", "--model", saved, "--kind", "unsafe", "--preserve", "dog", "--ledger", "here", *FAST)
    from erasure.eval.reports.model_card import prompts_of

    assert prompts_of(Ledger.open("here")) == ["a photo of a dog"]


def test_a_cut_lora_says_what_it_misses(saved: Path) -> None:
    quick = ["--no-measure", "--set", "eraser.steps=1", "--set", "eraser.sample_steps=2"]
    call("remove", "cat", "--model", saved, "--method", "esd", "--ledger", "here", *quick)
    result = call("export", "here", "out", "--format", "kohya", "--rank", "1", "--no-images")
    notes = [line.removeprefix("note: ") for line in result.stdout.splitlines() if line.startswith("note: ")]
    assert "to_out.0.bias' and" in notes[0]
    assert notes[1].startswith("The change at rank 1: it misses 0.")
    assert all(note in card_of(Path("out")).text for note in notes)


def test_a_push_goes_on_with_what_was_written(ledger: Path, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    push = ("export", ledger, "out", "--format", "lora", "--no-images", "--push", "me/no-cats", "--private")
    call(*push[:-3])
    assert 'pipe.load_lora_weights("out", ' in card_of(Path("out")).text
    with serving() as hub:
        environment = {**os.environ, **home, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"}
        hub.refuse = "/commit/"
        first = erasure(*push, env=environment)
        assert first.returncode == 2
        assert len([line for line in first.stderr.splitlines() if line.startswith("erasure: ")]) == 1
        written = Path("out/pytorch_lora_weights.safetensors").stat().st_mtime_ns
        hub.refuse = None
        second = erasure(*push, env=environment)
        assert second.returncode == 0, second.stderr
    assert "out: written before; the upload goes on." in second.stdout
    assert Path("out/pytorch_lora_weights.safetensors").stat().st_mtime_ns == written
    assert 'pipe.load_lora_weights("me/no-cats", ' in card_of(Path("out")).text  # renamed, not written again
    assert hub.repos == {"me/no-cats": "private"}
    assert hub.commits == {"me/no-cats": ["cat removed"]}
    assert hub.files["me/no-cats"]["README.md"] == Path("out/README.md").read_bytes()
    assert "hf_secret" not in "".join(run.stdout + run.stderr for run in (first, second))
    assert b"hf_secret" not in b"".join(hub.files["me/no-cats"].values())


def test_what_cannot_be_exported_is_one_line(ledger: Path, saved: Path, monkeypatch) -> None:
    assert fails("export", "nowhere", "out") == (
        "erasure: ledger: expected a folder with a ledger.json, got 'nowhere'. Check the path."
    )
    assert "Unknown format 'onnx'" in fails("export", ledger, "out", "--format", "onnx")
    assert "--private: expected --push USER/REPO beside it" in fails("export", ledger, "out", "--private")
    assert "expected a repository 'USER/NAME'" in fails("export", ledger, "out", "--push", "no-cats")
    monkeypatch.setattr("erasure.io.push.get_token", lambda: None)
    assert "expected a login of the Hub, got none" in fails("export", ledger, "out", "--push", "me/no-cats")
    Path("taken").mkdir()
    Path("taken/file").touch()
    assert "taken: expected a new or empty folder" in fails("export", ledger, "taken")
    Path("loop").symlink_to("loop")
    assert "loop: expected a folder that can be written" in fails("export", ledger, "loop")
    assert "expected a folder that can be written" in fails("export", ledger, "taken/file/out")
    call("undo", ledger, "1")
    assert "expected a ledger with a removal that stands, got none" in fails("export", ledger, "out")
    assert not Path("out").exists()


def test_a_base_that_is_gone_is_one_line(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    Ledger.open_or_create("here", pipe, str(tmp_path / "gone")).add(erase(pipe, "cat", eraser=UCE(rows="last-subject")))
    assert f"got '{tmp_path / 'gone'}'. Check the path." in fails("export", "here", "out")
    assert not Path("out").exists()


def test_removals_are_replayed_on_another_model(ledger: Path, tmp_path: Path) -> None:
    tiny.sd1(seed=1, vocabulary="clip").save_pretrained(tmp_path / "fine-tune")
    lines = call("replay", ledger, "--model", "fine-tune", "--ledger", "new").stdout.splitlines()
    assert lines[0].startswith("001 cat: uce, ")
    assert lines[-1] == "ledger: new"
    assert call("verify", "new").stdout.startswith("verified: 1 removal,")
    log = call("log", "new").stdout
    assert f"base: {tmp_path / 'fine-tune'}" in log
    assert "replayed: 001 of a ledger of" in log
    assert json.loads(call("log", "new", "--json").stdout)["origin"]["entries"] == ["001"]
    assert "1 entries exist already" in call("replay", ledger, "--model", "fine-tune", "--ledger", "new").stdout
    assert "expected 'tinyworld', a folder or a Hub id" in fails("replay", ledger, "--model", "nowhere")


def test_a_published_edit_becomes_an_entry(saved: Path) -> None:
    pipe = load_model(str(saved))
    edit = erase(pipe, "Monet", eraser=UCE(rows="last-subject"))
    edit.save("own.safetensors")
    weights = {name: weight.clone() for name, weight in pipe.unet.state_dict().items() if ".attn2.to_v" in name}
    save_file({name: weight + 1 for name, weight in weights.items()}, "esd.safetensors")
    asked = ("--model", saved, "--removed", "Van Gogh", "--kind", "style", "--ledger", "here")
    lines = call("load-edit", "esd.safetensors", *asked).stdout.splitlines()
    assert lines == [f"001 Van Gogh: imported, {len(weights)} weights", "ledger: here"]
    entry = Ledger.open("here").entries[0]
    assert (entry.concepts[0].kind, entry.settings["file"]) == ("style", "esd.safetensors")
    # The ledger's base is the default, and this library's own file says what it removes.
    assert call("load-edit", "own.safetensors", "--ledger", "here").stdout.startswith("002 Monet: uce, ")
    assert call("verify", "here").exit_code == 0


def test_what_cannot_be_loaded_as_an_edit_is_one_line(saved: Path) -> None:
    pipe = load_model(str(saved))
    erase(pipe, "cat", eraser=UCE(rows="last-subject")).save("own.safetensors")
    save_file({"some.weight": pipe.unet.conv_in.bias.data}, "other.safetensors")
    Path("esd.pt").write_bytes(b"a pickle")
    assert "--removed: expected the removed concepts" in fails("load-edit", "other.safetensors", "--model", saved)
    assert "--removed: expected none" in fails("load-edit", "own.safetensors", "--removed", "cat")
    assert "A pickle (.pt, .bin) is not opened" in fails("load-edit", "esd.pt", "--removed", "cat")
    assert "expected names of the model's parameters" in fails(
        "load-edit", "other.safetensors", "--removed", "cat", "--model", saved
    )
    assert "Load that base, or start another ledger" in fails("load-edit", "own.safetensors", "--ledger", "new")
