"""Removals during sampling in the forms that other programs read: with their guidance, or refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from erasure import Concept, Edit, Ledger, load_model, make_eraser
from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.eval.reports.model_card import model_card
from erasure.loading import load_stored
from erasure.pipelines.export.formats import FORMATS, Export, write_export
from tests import tiny


def images(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat and a dog", num_inference_steps=2, output_type="latent", generator=generator).images


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, Any]:
    folder = tmp_path_factory.mktemp("export")
    pipe = tiny.FAMILIES[request.param]()
    pipe.save_pretrained(folder / "model")
    pipe = DiffusionPipeline.from_pretrained(folder / "model")
    made = Ledger.create(folder / "ledger", backbone_of(pipe).fingerprint(), str(folder / "model"))
    localised = make_eraser("localised", region="otsu", grow=0)
    made.remove(pipe, localised, [Concept(target="cat", preserve=("dog",))])
    made.remove(pipe, make_eraser("uce", rows="last-subject"), [Concept(target="bird")])
    return made, pipe


def test_a_pipeline_holds_the_guidance_and_is_not_loaded_without_it(ledger: tuple[Ledger, Any], tmp_path: Path) -> None:
    opened, pipe = ledger
    written = write_export(opened, pipe, Export(format="pipeline"), tmp_path)
    assert "trust_remote_code" in written.notes[0]
    with opened.applied_to(pipe):
        expected = images(pipe)
    exported = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(images(exported), expected)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_the_library_does_not_load_it_as_a_model_without_its_guidance(
    ledger: tuple[Ledger, Any], tmp_path: Path
) -> None:
    opened, pipe = ledger
    write_export(opened, pipe, Export(format="pipeline"), tmp_path)
    for load in (load_model, load_stored):
        with pytest.raises(InputError, match=r"model: expected a pipeline of diffusers .* Use its ledger") as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_the_cards_snippet_loads_it(ledger: tuple[Ledger, Any], tmp_path: Path) -> None:
    opened, pipe = ledger
    written = write_export(opened, pipe, Export(format="pipeline"), tmp_path)
    card = str(model_card(opened, pipe, replace(written, name=str(tmp_path)), image=False))
    code = card.partition("```python\n")[2].partition("\n```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    with opened.applied_to(pipe):
        assert torch.equal(images(names["pipe"]), images(pipe))


def test_an_edit_holds_both(ledger: tuple[Ledger, Any], tmp_path: Path) -> None:
    opened, pipe = ledger
    write_export(opened, pipe, Export(format="edit"), tmp_path)
    with opened.applied_to(pipe):
        expected = images(pipe)
    with Edit.load(tmp_path / "edit.safetensors").applied_to(pipe):
        assert torch.equal(images(pipe), expected)


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"pipeline", "edit"}))
def test_formats_of_weights_alone_refuse_it_in_one_line(ledger: tuple[Ledger, Any], tmp_path: Path, form: str) -> None:
    opened, pipe = ledger
    with pytest.raises(InputError, match=f"{form}: expected removals in the weights alone, got 001 by local") as caught:
        write_export(opened, pipe, Export(format=form), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_guidance_beside_it_is_refused(ledger: tuple[Ledger, Any], tmp_path: Path) -> None:
    opened, pipe = ledger
    with pytest.raises(InputError, match="got a-star, localised"):
        write_export(opened, pipe, Export(format="pipeline", guidance="a-star"), tmp_path)
