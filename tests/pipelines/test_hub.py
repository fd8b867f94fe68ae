"""One self-contained file a pipeline class, for processes in which this package is not installed."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from erasure.errors import InputError
from erasure.pipelines.export.formats import GUIDANCES
from erasure.pipelines.export.hub import PIPELINES, file_name, main, self_contained
from tests import tiny
from tests.pipelines.elsewhere import Elsewhere

ALONE = """
import json
import sys

import torch
from diffusers import DiffusionPipeline

model, file, out, given = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline=file, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
images = pipe("a cat and a dog", num_inference_steps=2, output_type="latent",
              generator=torch.Generator().manual_seed(0), **json.loads(given)).images
torch.save(images, out)
print(type(pipe).__name__)
"""


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda kind: kind.__name__)
def test_a_file_defines_one_pipeline_and_imports_nothing_of_ours(pipeline: Any) -> None:
    tree = ast.parse(self_contained(pipeline))
    imports = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    allowed = {
        "diffusers",
        "transformers",
        "torch",
        "numpy",
        "PIL",
        "safetensors",
        "huggingface_hub",
    } | sys.stdlib_module_names
    assert {name.partition(".")[0] for name in imports} <= allowed
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if name.endswith("Pipeline")] == [pipeline.__name__]
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(defined) == len(set(defined))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    ("guidance", "given"),
    [
        ("a-star", {"concepts": ["cat", "dog"]}),
        ("attend-and-excite", {"concepts": ["cat", "dog"], "refine_at": [], "peaks": []}),
        ("localised", {"concepts": ["cat"], "preserve": ["dog"], "scale": 3.0}),
        ("adavd", {"concepts": ["cat"], "threshold": 0.0}),
        ("negative-prompt", {"concepts": ["cat"]}),
        ("safree", {"concepts": ["cat"], "as_negative": True, "steps": "all"}),
        ("semantic-surgery", {"concepts": ["cat"], "beta": -1.0}),
        ("sld", {"concepts": ["cat"], "warmup": 0}),
    ],
)
def test_it_runs_alone_and_makes_the_same_picture(
    guidance: str, given: dict[str, Any], family: str, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    kind = GUIDANCES[guidance][family == "sdxl"]
    pipe = tiny.FAMILIES[family]()
    pipe.save_pretrained(tmp_path / "model")
    file = tmp_path / f"{file_name(kind)}.py"
    file.write_text(self_contained(kind))
    arguments = [str(tmp_path / "model"), str(file), str(tmp_path / "out.pt"), json.dumps(given)]
    assert elsewhere.run(ALONE, *arguments).split()[-1] == kind.__name__
    here: Any = kind
    guided = here.from_pipe(pipe)
    guided.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 2, "output_type": "latent"}
    expected, plain = (
        guided("a cat and a dog", generator=torch.Generator().manual_seed(0), **asked, **more).images
        for more in (given, {})
    )
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(expected, plain)


def test_a_setting_out_of_range_is_refused_without_this_package(elsewhere: Elsewhere, tmp_path: Path) -> None:
    file = tmp_path / "sld.py"
    file.write_text(self_contained(GUIDANCES["sld"][False]))
    script = """
import runpy, sys
parts = runpy.run_path(sys.argv[1])
try:
    parts["SafeLatentDiffusion"](concepts=("cat",), momentum=1.0)
except parts["InputError"] as error:
    print(error)
"""
    assert elsewhere.run(script, str(file)).startswith("sld.momentum: expected a number >= 0 and < 1, got 1.0.")


def test_the_command_writes_a_file_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hub", "--out", str(tmp_path / "community")])
    main()
    assert len(list((tmp_path / "community").glob("pipeline_stable_diffusion_*.py"))) == len(PIPELINES)
    assert "pipeline_stable_diffusion_xl_a_star_inpaint.py" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["hub", "--out", str(tmp_path / "file" / "folder")])
    with pytest.raises(SystemExit):
        main()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_foreign_classes_are_refused() -> None:
    with pytest.raises(InputError, match="expected a pipeline class of erasure, got StableDiffusionPipeline"):
        self_contained(StableDiffusionPipeline)
