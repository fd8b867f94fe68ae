"""`erasure audit`, as a person or a script meets it."""

import json
import logging
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner, Result

from erasure import Concept, Ledger, make_eraser
from erasure.backbones import backbone_of
from erasure.cli.main import app
from erasure.eval.probes import Subject, probe_class
from erasure.eval.probes.traces import Traces
from erasure.eval.reports.card_audit import last_audit
from erasure.judge import cached_clips
from erasure.loading import load_model
from tests.tiny import sd1


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def fails(*arguments: str | Path) -> str:
    """Return the one line that a call which must fail says."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    [line] = result.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of the Stable Diffusion 1 classes with random weights, and another with some of them moved."""
    base, edited = (tmp_path_factory.mktemp(name) for name in ("base", "edited"))
    pipe = sd1(vocabulary="clip")
    pipe.save_pretrained(base)
    with torch.no_grad():
        for weight in backbone_of(pipe).parameters(backbone_of(pipe).sites(("cross.k",)).__contains__).values():
            weight.mul_(0.9)
    pipe.save_pretrained(edited)
    return base, edited


def test_a_ledger_without_a_standing_removal_is_one_line(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", "0" * 16, "tinyworld")
    line = fails("audit", tmp_path / "ledger")
    assert "expected a ledger in which a removal stands, got one without" in line


@pytest.mark.parametrize("command", [("audit", "--probe", "traces"), ("evaluate",)])
def test_a_ledger_that_is_not_whole_is_one_line_before_a_model_is_loaded(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    ledger = removed_from(models[0], tmp_path / "ledger")
    monkeypatch.setattr("erasure.cli.evaluate.load_pipe", pytest.fail)
    name, *options = command
    [file] = (tmp_path / "ledger" / "edits").glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    line = fails(name, ledger, *options, "--out", tmp_path / "out")
    assert f"{file}: expected the file with sha256 " in line
    assert line.endswith("Put it back from a copy, or undo 001 and remove it again.")
    file.unlink()
    assert "expected the edit of entry 001, got 'No such file or directory'" in fails(name, ledger, *options)
    assert not (tmp_path / "out").exists()


def test_a_ledger_whose_model_is_no_longer_its_base_is_one_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, edited = models
    ledger = removed_from(base, tmp_path / "ledger")
    record = ledger / "ledger.json"
    record.write_text(record.read_text(encoding="utf-8").replace(str(base), str(edited)), encoding="utf-8")
    line = fails("audit", ledger, "--probe", "traces", "--out", tmp_path / "out")
    assert "expected its base" in line
    assert line.endswith("Load that base, or start another ledger.")
    assert not (tmp_path / "out").exists()


def test_a_gold_that_cannot_be_loaded_is_one_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, edited = models
    audit = ("audit", edited, "--removed", "cat", "--original", base, "--out", tmp_path / "out", "--gold")
    either = "--gold: expected a whole model (model_index.json), or the folder of its denoiser, UNet2DConditionModel"
    (tmp_path / "empty").mkdir()
    shutil.copytree(base / "unet", tmp_path / "cut")
    [weights] = (tmp_path / "cut").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.copytree(base / "unet", tmp_path / "words")
    (tmp_path / "words" / "config.json").write_text("{")
    shutil.copytree(base / "unet", tmp_path / "other")
    config = json.loads((base / "unet" / "config.json").read_text())
    wide = UNet2DConditionModel.from_config({**config, "cross_attention_dim": 2 * config["cross_attention_dim"]})
    wide.save_pretrained(tmp_path / "wide")
    shutil.copy(tmp_path / "wide" / weights.name, tmp_path / "other" / weights.name)
    (tmp_path / "file.txt").write_text("x")
    with messages_of("diffusers") as messages:
        assert fails(*audit, base / "vae").endswith(
            f"got AutoencoderKL in {str(base / 'vae')!r}. Name a model that was trained without the concept."
        )
        assert either in fails(*audit, base / "vae")
        assert f"got an empty folder in {str(tmp_path / 'empty')!r}" in fails(*audit, tmp_path / "empty")
        for name, line, advice in (
            ("cut", "--gold: ", "again."),
            ("words", "config.json: expected the configuration of a denoiser", "or delete it."),
            ("wide", "--gold: expected a denoiser with the original's layers", "original's configuration."),
            ("other", "--gold: expected a complete diffusers model", "Save or download the model again."),
            ("file.txt", "--gold: expected a folder or a model on the Hub, got the file", "will do as well."),
            ("none", "--gold: expected 'tinyworld', a folder or a Hub id", "will do as well."),
        ):
            said = fails(*audit, tmp_path / name)
            assert said.removeprefix("erasure: ").startswith("--gold: ")
            assert line in said
            assert said.endswith(advice)
            assert "ignore_mismatched_sizes" not in said
    assert messages == []
    assert not (tmp_path / "out").exists()


@contextmanager
def messages_of(library: str) -> Generator[list[str]]:
    """Collect the log messages of a library."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger(library).addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger(library).removeHandler(handler)


def test_the_original_under_another_name_is_not_audited(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = models
    shutil.copytree(base, tmp_path / "copy")
    line = fails("audit", tmp_path / "copy", "--removed", "cat", "--original", base, "--out", tmp_path / "out")
    assert "expected a model with removed concepts, got the model" in line
    assert f"whose weights are those of the original {str(base)!r}. Name a ledger or an edited model." in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["audit", "evaluate", "attack"])
def test_a_wrong_path_is_said_to_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--attack", "mma") if command == "attack" else ()
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "edits").mkdir(parents=True)
    (tmp_path / "file.txt").write_text("x")
    folder = "source: expected the folder of a ledger (ledger.json) or of a model (model_index.json), got "
    for name, got in (
        ("empty", "'empty', an empty folder."),
        ("half", "'half', a folder with neither."),
        ("file.txt", "'file.txt', a file."),
        ("runs/none", "'runs/none', where there is no folder."),
        ("", "''."),
    ):
        assert folder + got in fails(command, name, *options), name
    assert "source: " in fails(command, "file.txt", *options, "--removed", "cat")
    assert "source: " in fails(command, "empty", *options, "--removed", "cat")
    assert "--removed: expected the concepts removed from 'tinyworld'" in fails(command, "tinyworld", *options)


def test_audits_with_other_arguments_have_folders_of_their_own(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    base, edited = models
    audit = ("audit", edited, "--removed", "cat", "--original", base, "--probe", "traces", "--set", "traces.latents=2")
    folders: list[set[Path]] = []
    for options in ((), (), ("--seed", "1"), ("--set", "traces.latents=1")):
        assert call(*audit, *options).exit_code == 0
        folders.append({path.parent for path in Path("erasure-runs").glob("audits/quick-*-model/audit.json")})
    assert [len(each) for each in folders] == [1, 1, 2, 3]
    ledger = removed_from(base, tmp_path / "ledger")
    assert call("audit", ledger, "--probe", "traces", "--set", "traces.latents=2").exit_code == 0
    [folder] = (ledger / "audits").iterdir()
    assert folder.name.endswith(f"-{Ledger.open(ledger).state()}"), "by which a card is told the last audit"
    assert last_audit(Ledger.open(ledger)) is not None


def test_an_exported_folder_names_what_was_removed(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    base, exported = models[0], tmp_path / "exported"
    call("export", removed_from(base, tmp_path / "ledger"), exported, "--no-images")
    audit = ("audit", exported, "--original", base, "--probe", "traces", "--set", "traces.latents=2", "--json")
    document = json.loads(call(*audit, "--out", tmp_path / "out").stdout)
    assert [concept["concept"] for concept in document["concepts"]] == ["cat"]
    (exported / "erasure.json").unlink()
    assert "--removed: expected the concepts removed from" in fails(*audit, "--out", tmp_path / "again")


def removed_from(base: Path, folder: Path) -> Path:
    """Return the folder of a new ledger in which cat is removed from a model."""
    pipe = load_model(base)
    Ledger.open_or_create(folder, pipe, str(base)).remove(pipe, make_eraser("uce"), [Concept(target="cat")])
    return folder


def few(*settings: str) -> list[str]:
    """Return options by which the probes that look inside take a moment."""
    small = ("hidden.pairs=2", "hidden.levels=1", "traces.latents=2", "attention.prompts=1", *settings)
    return [part for setting in small for part in ("--set", setting)]


def test_a_model_without_a_judge_runs_what_needs_none_and_says_what_each_other_probe_lacks(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cached_clips():
        pytest.skip("CLIP is in the local cache and judges")
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    base, edited = models
    arguments = ("audit", edited, "--removed", "cat", "--original", base, "--suite", "standard", *few())
    result = call(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.output.splitlines() if "a judge of the images: hf download openai" in line]
    assert line.startswith("not measured: plain, combined, emphasis, ")
    assert "hand-over" in line
    assert "not measured: never-taught: a model that was never taught the concept: train one" in result.output
    [concept] = json.loads((tmp_path / "out" / "audit.json").read_text())["concepts"]
    status = {name: probe["status"] for name, probe in concept["probes"].items()}
    measured = {name for name, each in status.items() if each == "measured"}
    assert measured == {"hidden", "traces", "attention"}
    assert all(each == "missing" for name, each in status.items() if name not in measured)
    assert all(probe_class(name).judged for name in status.keys() - measured - {"never-taught"})
    parts = {reading["part"]: reading["rows"] for reading in concept["probes"]["hidden"]["readings"]}
    assert parts["keys"]["original"]["mean"] == pytest.approx(1, abs=1e-4)
    assert parts["keys"]["erased"]["mean"] < 1


def test_a_probe_that_fails_is_a_line_of_the_page_and_exit_code_1(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))

    def broken(probe: Traces, subject: Subject) -> None:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(Traces, "outcomes", broken)
    base, edited = models
    asked = ("--probe", "traces", "attention", "--set", "traces.latents=2", "--set", "attention.prompts=1")
    result = call("audit", edited, "--removed", "cat", "--original", base, *asked, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "not measured: traces: no kernel for this (RuntimeError)" in result.output
    assert "not measured: no kernel for this (RuntimeError)" in (tmp_path / "out" / "report.html").read_text()
    [concept] = json.loads((tmp_path / "out" / "audit.json").read_text())["concepts"]
    assert concept["probes"]["attention"]["status"] == "measured", "the others go on"


def test_what_cannot_be_audited_is_one_line_and_nothing_is_written(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edited = models
    audit = ("audit", edited, "--removed", "cat", "--original", base, "--out", tmp_path / "out")
    with monkeypatch.context() as early:
        early.setattr("erasure.cli.evaluate.load_pipe", pytest.fail)
        for arguments, line in (
            (("--probe", "hand-ovr"), "Unknown probe 'hand-ovr'. Did you mean 'hand-over'"),
            (("--suite", "quik"), "Unknown suite 'quik'. Did you mean 'quick'"),
            (("--set", "quantise.doses=[]"), "--set quantise.doses: "),
            (("--set", "quantise.doses=[1]"), "--set quantise.doses"),
        ):
            assert line in fails(*audit, *arguments)
    line = fails("audit", edited, "--removed", "cat", "--original", "tinyworld")
    assert line.endswith("got 'tinyworld', whose layers are others. Name it: --original MODEL.")
    other = sd1(vocabulary="clip")
    with torch.no_grad():
        other.text_encoder.get_input_embeddings().weight.add_(1e-3)
    other.save_pretrained(tmp_path / "other")
    gold = ("--gold", tmp_path / "other")
    assert "--gold: expected the original's text_encoder, got another" in fails(*audit, *gold)
    line = fails("audit", base, "--removed", "cat", "--original", base)
    assert "expected a model with removed concepts, got the original" in line
    assert not (tmp_path / "out").exists()
