"""`--low-memory`, as a person or a script meets it, beside the same on a loaded model."""

import json
import os
import re
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from erasure.cli.main import app
from erasure.pipelines.export import folders
from tests import tiny
from tests.pipelines.test_export import save_whole
from tests.test_cli import fails

ASKED = ("--kind", "style", "--preserve", "Monet", "--set", "eraser.rows=last-subject")


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl", "flux"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, and with a variant in float16 beside them."""
    path = tmp_path_factory.mktemp(request.param) / "model"
    save_whole(request.param, path)
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def call(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a model, without what says of it when and where it was made."""
    kept = {path: path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes() for path, name in kept.items() if str(name) not in ("README.md", "erasure.json")
    }


def test_one_command_gives_the_bytes_of_the_loaded_way(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("remove", "Van Gogh", "Dali", *ASKED, "--model", model, "--ledger", "loaded", "--no-measure")
    call("export", "loaded", "wanted", "--no-images")
    wanted = contents(Path("wanted"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a denoiser was loaded")

    low = ("--low-memory", "--out", "out")
    with monkeypatch.context() as patched:
        for kind in (UNet2DConditionModel, FluxTransformer2DModel):
            patched.setattr(kind, "from_pretrained", refuse)
        lines = call("remove", "Van Gogh", "Dali", *ASKED, "--model", model, "--ledger", "low", *low).splitlines()
        # What is recorded is a removal like another: the loaded way's ledger is written as well.
        call("export", "loaded", "again", "--low-memory")
    assert lines[-1] == "model: out"
    assert "measure skipped: a model that stays on the disk makes no images (--low-memory)." in lines
    assert any("fp16-0000" in name for name in wanted)
    assert contents(Path("out")) == wanted
    assert contents(Path("again")) == wanted
    assert call("verify", "low").startswith("verified: 2 removals")


@pytest.mark.parametrize("method", ["speed", "cfe"])
def test_a_map_with_states_held_exactly_is_fitted_on_the_disk(small: Path, method: str) -> None:
    given = ("--method", method, "--preserve", "Monet", "--model", small, "--set", "eraser.rows=last-subject")
    for name, how in {"low": ("--low-memory",), "loaded": ("--no-measure",)}.items():
        call("remove", "Van Gogh", *given, "--ledger", f"{name}-l", "--out", name, *how)
    assert contents(Path("low")) == contents(Path("loaded"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "model"
    save_whole("sd1", path)
    return path


def test_the_result_is_a_model_with_a_card(small: Path) -> None:
    given = (*ASKED, "--model", small, "--low-memory", "--out", "deep/out", "--json")
    document = json.loads(call("remove", "Van Gogh", *given))
    assert document["out"] == "deep/out"
    assert document["measure_skipped"]
    assert json.loads(Path(document["run"]).read_text())["low_memory"] is True
    assert "# model without Van Gogh" in Path("deep/out/README.md").read_text()
    pipe = DiffusionPipeline.from_pretrained("deep/out")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", num_inference_steps=1, output_type="latent").images.isfinite().all()


def test_a_loaded_model_is_written_by_the_same_option(small: Path) -> None:
    low, loaded = ("--low-memory",), ("--no-measure",)
    for name, how in {"low": low, "loaded": loaded}.items():
        call("remove", "Van Gogh", *ASKED, "--model", small, "--ledger", f"{name}-l", "--out", name, *how)
    assert contents(Path("low")) == contents(Path("loaded"))


def test_an_edit_needs_no_loaded_model_either(small: Path) -> None:
    call("remove", "Van Gogh", *ASKED, "--model", small, "--ledger", "here", "--low-memory")
    call("export", "here", "one", "--format", "edit", "--low-memory")
    call("export", "here", "other", "--format", "edit", "--no-images")
    one, other = (read_whole(Path(name, "edit.safetensors")) for name in ("one", "other"))
    assert one == other


def test_files_that_do_not_change_are_linked_where_asked(small: Path) -> None:
    call("remove", "Van Gogh", *ASKED, "--model", small, "--low-memory", "--ledger", "l", "--out", "linked", "--link")
    call("export", "l", "copied", "--low-memory")
    assert contents(Path("linked")) == contents(Path("copied"))
    linked = {path for path in Path("linked").rglob("*.safetensors") if path.stat().st_nlink > 1}
    assert {path.parent.name for path in linked} >= {"vae", "text_encoder"}
    assert any(path not in linked for path in Path("linked/unet").glob("*.safetensors"))
    assert all(path.stat().st_nlink == 1 for path in Path("copied").rglob("*.safetensors"))
    assert "link: expected the format pipeline, got edit" in fails("export", "l", "o", "--format", "edit", "--link")
    assert "--link: expected --out OUT beside it" in fails("remove", "Dali", "--model", small, "--link")


def test_a_lora_needs_no_loaded_model_either(small: Path) -> None:
    call("remove", "Van Gogh", *ASKED, "--model", small, "--ledger", "here", "--low-memory")
    call("export", "here", "one", "--format", "lora", "--low-memory")
    call("export", "here", "other", "--format", "lora", "--no-images")
    one, other = (read_whole(Path(name, "pytorch_lora_weights.safetensors")) for name in ("one", "other"))
    assert one == other
    assert one[1]


def read_whole(file: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return what a file of safetensors says and holds; the order in which it says it is not the same every time."""
    with safe_open(file, framework="np") as opened:
        tensors = {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118 - not a mapping
        return opened.metadata(), tensors


def test_an_interruption_leaves_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, files = folders.rewrite_tensors, []

    def interrupted(source: Path, to: Path, *given: object, **named: object) -> None:
        files.append(to)
        if len(files) == 2:
            raise KeyboardInterrupt
        own(source, to, *given, **named)

    given = (*ASKED, "--model", small, "--low-memory", "--ledger", "here", "--out", "out")
    with monkeypatch.context() as patched:
        patched.setattr(folders, "rewrite_tensors", interrupted)
        assert run("remove", "Van Gogh", *given).exit_code == 2
    assert len(files) < len(list(small.rglob("*.safetensors")))  # those beside it are written to their end
    assert {path.name for path in Path().iterdir()} == {"here"}
    # The removal stands; the same command goes on from there.
    assert "Van Gogh: already removed" in call("remove", "Van Gogh", *given)
    assert Path("out/model_index.json").is_file()


def test_a_kill_leaves_nothing_under_the_name(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["remove", "Van Gogh", *ASKED, "--model", str(small), "--low-memory", "--ledger", "here", "--out", "out"]
    own = folders.rewrite_tensors

    def killed(*arguments: object, **named: object) -> None:
        own(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(folders, "rewrite_tensors", killed)
        process = get_context("fork").Process(target=call, args=given)
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not Path("out").exists()
    call(*given)
    assert Path("out/model_index.json").is_file()


@pytest.mark.parametrize("place", ["unet.attn2.to_v", "text_encoder.layers.0", "vae.conv_in"])
def test_weights_that_are_not_finite_are_named(small: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(small, tmp_path / "model")
    part, _, key = place.partition(".")
    for file in sorted((tmp_path / "model" / part).glob("*.safetensors")):
        tensors = load_file(file)
        for name in [name for name in tensors if key in name]:
            tensors[name].view(-1)[-1] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
    request = ("remove", "Van Gogh", *ASKED, "--model", "model", "--low-memory", "--ledger", "here", "--out", "out")
    assert re.search(rf"expected finite weights, got inf or nan in '{part}\.[^']*{key}", run(*request).stderr)
    assert not Path("out").exists()


def test_what_cannot_be_done_in_little_memory_is_one_line(small: Path) -> None:
    low = ("--model", small, "--low-memory")
    message = fails("remove", "cat", "--method", "esd", *low)
    assert re.search(r"expected an eraser that reads text alone \(.*localised, .*uce\), got 'esd'", message)
    assert ", got 'rece'" in fails("remove", "cat", "--method", "rece", *low)
    assert "--low-memory: expected the device cpu, got 'cuda'" in fails("remove", "cat", *low, "--device", "cuda")
    assert "--low-memory: expected the attention sdpa, as no images are sampled, got 'xformers'" in fails(
        "remove", "cat", *low, "--attention", "xformers"
    )
    Path("taken").mkdir()
    Path("taken/file").touch()
    assert "taken: expected a new or empty folder" in fails("remove", "cat", *low, "--out", "taken")
    assert "--out: expected another folder than the ledger's" in fails(
        "remove", "cat", *low, "--out", "here", "--ledger", "here"
    )
    assert not Path("here").exists()
    assert not Path("erasure-runs").exists()
    call("remove", "Van Gogh", *ASKED, *low, "--ledger", "here")
    for name in ("kohya", "checkpoint"):
        assert f"expected the format pipeline or edit or lora or single-file, got '{name}'" in fails(
            "export", "here", "out", "--format", name, "--low-memory"
        )
    assert "--steps: expected none with --low-memory" in fails("export", "here", "out", "--low-memory", "--steps", "2")
    assert "expected the device cpu" in fails("export", "here", "out", "--low-memory", "--device", "cuda:0")
    assert not Path("out").exists()


def test_quantised_weights_point_to_the_unquantised_model() -> None:
    tiny.flux().save_pretrained("fp8")
    file, name = Path("fp8/transformer/diffusion_pytorch_model.safetensors"), "context_embedder.weight"
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, file, metadata={"format": "pt"})
    message = fails("remove", "cat", "--model", "fp8", "--ledger", "here", "--low-memory")
    what = f"unquantised weights in '{file}', got F8_E4M3 in 'transformer.{name}'. Remove from the unquantised model"
    assert what in message
    assert not Path("here").exists()


def test_another_base_is_refused(small: Path) -> None:
    tiny.sd1(seed=1).save_pretrained("other")
    call("remove", "Van Gogh", *ASKED, "--model", small, "--low-memory", "--ledger", "here")
    assert "Load that base, or start another ledger" in fails(
        "remove", "Dali", "--model", "other", "--low-memory", "--ledger", "here"
    )
