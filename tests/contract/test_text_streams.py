"""The text streams of every family: their readers are declared, receive the declared rows, and a map is an edit."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erasure.backbones import backbone_of
from erasure.backbones.conditioning import TEXT
from erasure.closed_form.pair_problems import spaces_of
from erasure.closed_form.problem import TextMap
from erasure.concept import Concept
from erasure.edits import WeightEdit
from erasure.edits.changes import MapChange
from erasure.erasers import make_eraser
from erasure.training.context import FitContext
from tests import tiny

PROMPTS = ["a photo of a cat", "a dog"]


@pytest.fixture(scope="module", params=sorted(tiny.EVERY))
def backbone(request: pytest.FixtureRequest) -> Any:
    return backbone_of(tiny.EVERY[request.param]())


def predicted(backbone: Any, *, prompts: list[str] = PROMPTS) -> Tensor:
    shape = backbone.latent_shape()
    latents = torch.randn(len(prompts), *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.predict(latents, torch.tensor(500), backbone.encode(prompts))


def readers(backbone: Any, space: str) -> dict[str, nn.Module]:
    prefix = f"{backbone.denoiser_name}."
    names = [site.module.removeprefix(prefix) for site in backbone.sites(reads=space).values()]
    return {name: backbone.denoiser.get_submodule(name) for name in names}


def a_map(dim: int) -> TextMap:
    u, v = torch.randn(2, dim, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return TextMap(u=0.3 * u, v=v / dim**0.5)


def test_every_reader_receives_the_rows_of_its_stream(backbone: Any) -> None:
    """What `read` returns is the input of the layers, each row of it that is read, and no row is not a number."""
    states = backbone.read(PROMPTS)
    spaces = spaces_of(backbone, states)
    assert spaces[0] == TEXT
    for space in spaces:
        stream = states.streams[space]
        inputs: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name, layer in readers(backbone, space).items():
                keep = lambda _, args, name=name, to=inputs: to.update({name: args[0].detach()})  # noqa: E731
                hooks.callback(layer.register_forward_pre_hook(keep).remove)
            predicted(backbone)
        assert inputs.keys() == readers(backbone, space).keys()
        rows = stream.read_states()
        assert rows.isfinite().all()
        for received in inputs.values():
            width = rows.shape[-1]
            assert received.shape[-1] == width or space == "pooled"
            distances = torch.cdist(rows.double(), received[..., :width].reshape(-1, width).double())
            assert distances.min(dim=1).values.max() < 1e-4


def test_a_map_of_the_rows_is_an_edit_of_their_readers(backbone: Any) -> None:
    for space in spaces_of(backbone, backbone.read(PROMPTS)):
        dim = backbone.read(PROMPTS).streams[space].states.shape[-1]
        change = MapChange(map=a_map(dim), space=space)
        matrix = change.map.matrix().float()

        def mapped(_: nn.Module, args: tuple[Tensor, ...], dim: int = dim, matrix: Tensor = matrix) -> tuple[Tensor]:
            return (torch.cat([args[0][..., :dim] @ matrix.T, args[0][..., dim:]], -1),)

        with ExitStack() as hooks:
            for layer in readers(backbone, space).values():
                hooks.callback(layer.register_forward_pre_hook(mapped).remove)
            expected = predicted(backbone)
        names = list(backbone.sites(reads=space))
        edit = WeightEdit(changes=dict.fromkeys(names, change), metadata=fitted(backbone).metadata)
        plain = predicted(backbone)
        with edit.applied_to(backbone.pipe):
            edited = predicted(backbone)
        torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(edited, plain, rtol=1e-3, atol=1e-4)


def test_a_closed_form_moves_the_name_in_every_stream(backbone: Any) -> None:
    edit = fitted(backbone)
    spaces = spaces_of(backbone, backbone.read(PROMPTS))
    assert set(edit.changes) == {name for space in spaces for name in backbone.sites(reads=space)}
    cat, dog = backbone.read(["a photo of a cat", "a photo of a dog"]).streams, {}
    for space in spaces:
        name = next(iter(backbone.sites(reads=space)))
        rows = [row for row in edit.rows[space].erased_rows() if row.site.startswith("a photo of a {}|")]
        assert rows
        matrix = edit.changes[name].as_map.map.matrix()
        dog[space] = [(matrix @ row.state - row.goal).norm() / (row.state - row.goal).norm() for row in rows]
        assert min(dog[space]) < 0.9
        assert cat[space].states.shape[-1] == len(matrix)


def fitted(backbone: Any) -> WeightEdit:
    uce = make_eraser("uce", strength=1.0, reg=0.01)
    return uce.fit([Concept(target="cat", anchor="dog")], FitContext(backbone=backbone))
