"""Exports that are not read back as they were written: one line, exit code 1 and no folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import single_file_model
from typer.testing import CliRunner, Result

from erasure.cli.main import app
from erasure.edits import weight_edit
from erasure.errors import ExportError
from erasure.io.tensor_files import stored_tensors, write_tensors
from erasure.pipelines.export import formats, reopened
from tests import tiny

FORMS = ["pipeline", "edit", "checkpoint"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of a saved model without cats."""
    folder = tmp_path_factory.mktemp("reopened")
    tiny.sd1().save_pretrained(folder / "model")
    options = ("--low-memory", "--set", "eraser.rows=last-subject", "--ledger", folder / "ledger")
    result = run("remove", "cat", "--model", folder / "model", "--preserve", "dog", *options)
    assert result.exit_code == 0, result.output
    return folder / "ledger"


def refused(ledger: Path, out: Path, form: str, *options: str) -> str:
    """Return the one line of an export that fails when it is read back; nothing is left of it."""
    result = run("export", ledger, out / "out", "--format", form, "--no-images", *options)
    lines = result.stderr.strip().splitlines()
    assert (result.exit_code, result.stdout, len(lines)) == (1, "", 1), result.output
    assert not list(out.iterdir())
    assert str(out) not in lines[0]
    assert lines[0].startswith(f"erasure: {form}: expected the export to be read back as it was written, got ")
    return lines[0]


def written_file(folder: Path, form: str) -> Path:
    """Return a file of an export with a changed tensor."""
    if form == "pipeline":
        return folder / "unet" / "diffusion_pytorch_model.safetensors"
    return folder / f"{form}.safetensors"


def flip(file: Path) -> None:
    """Flip the lowest bit of the first number of a file's layer that reads the text, or of its first tensor."""
    tensors = stored_tensors(file)
    name = next((name for name in tensors if name.endswith("attn2.to_k.weight")), next(iter(tensors)))
    with file.open("r+b") as opened:
        opened.seek(tensors[name].start)
        byte = opened.read(1)[0]
        opened.seek(tensors[name].start)
        opened.write(bytes([byte ^ 1]))


def cut(file: Path) -> None:
    """Leave out the end of a file."""
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 8)


def damaged(monkeypatch: pytest.MonkeyPatch, form: str, damage: Callable[[Path], None]) -> None:
    """Let a file of an export be damaged between its writing and its reading."""
    check = f"check_{'folder' if form == 'pipeline' else form}"
    original, place = getattr(reopened, check), {"pipeline": 3, "edit": 1, "checkpoint": 1}[form]

    def first_damaged(*arguments: Any) -> None:
        path = Path(arguments[place])
        damage(written_file(path if form == "pipeline" else path.parent, form))
        original(*arguments)

    monkeypatch.setattr(formats, check, first_damaged)


@pytest.mark.parametrize("form", FORMS)
def test_a_flipped_bit_is_found(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    damaged(monkeypatch, form, flip)
    assert "got another " in refused(ledger, tmp_path, form)


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_file_is_found(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    damaged(monkeypatch, form, cut)
    assert "got an error (" in refused(ledger, tmp_path, form)


def without(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping without the first entry of that ending."""
    lost = next(key for key in state if key.endswith(name))
    return {key: value for key, value in state.items() if key != lost}


def dropping(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Let the loader of a format ignore a changed weight and say nothing."""
    if form == "pipeline":
        load = UNet2DConditionModel.from_pretrained

        def lossy(*arguments: Any, **options: Any) -> Any:
            module, info = load(*arguments, **options)
            torch.nn.init.zeros_(next(p for name, p in module.named_parameters() if name.endswith("attn2.to_k.weight")))
            return module, info

        monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", lossy)
    elif form == "edit":
        described = weight_edit.object_member

        def shorter(data: object, name: str) -> dict[str, Any]:
            member = described(data, name)
            return without("to_k.weight", member) if name == "changes" else member

        monkeypatch.setattr(weight_edit, "object_member", shorter)
    else:
        kind = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["UNet2DConditionModel"]
        convert = kind["checkpoint_mapping_fn"]
        monkeypatch.setitem(
            kind, "checkpoint_mapping_fn", lambda **given: without("attn2.to_k.weight", convert(**given))
        )


@pytest.mark.parametrize(
    ("form", "got"),
    [
        ("pipeline", "another 'unet."),
        ("edit", "another description in 'edit.safetensors'"),
        ("checkpoint", "an error ("),
    ],
)
def test_a_loader_that_ignores_a_key_is_found(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, got: str
) -> None:
    def write(*arguments: Any) -> Any:
        dropping(monkeypatch, form)  # once the base is loaded
        return formats.write_export(*arguments)

    monkeypatch.setattr("erasure.eval.reports.publish.write_export", write)
    assert f"got {got}" in refused(ledger, tmp_path, form)


def test_a_flipped_bit_is_found_in_little_memory(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    damaged(monkeypatch, "pipeline", flip)
    monkeypatch.setattr(reopened, "load_folder", refuse)
    assert "got another 'unet." in refused(ledger, tmp_path, "pipeline", "--low-memory")


def test_files_of_a_guidance_are_read_back(tmp_path: Path) -> None:
    file, tensors = tmp_path / "guidance.safetensors", {"directions": torch.ones(4)}
    write_tensors(file, tensors)
    reopened.check_tensors(file, tensors)
    flip(file)
    with pytest.raises(ExportError, match="got another 'directions'"):
        reopened.check_tensors(file, tensors)
    cut(file)
    with pytest.raises(ExportError, match=r"got an error \(guidance.safetensors: expected all that"):
        reopened.check_tensors(file, tensors)
