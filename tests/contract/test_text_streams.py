"""The text streams of every family: their readers are declared, receive the declared rows, and a map is an edit."""

from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erasure.backbones import backbone_of
from erasure.backbones.conditioning import TEXT
from erasure.closed_form.pair_problems import pair_problems, spaces_of
from erasure.closed_form.problem import TextMap
from erasure.closed_form.readers import Places, PromptPair
from erasure.concept import Concept
from erasure.edits import EditMetadata, WeightEdit
from erasure.edits.changes import MapChange
from tests import tiny, tiny_families

PROMPTS = ["a photo of a cat", "a dog"]


@cache
def backbone_named(family: str) -> Any:
    return backbone_of(tiny.EVERY[family]() if family in tiny.EVERY else tiny_families.built(family))


@pytest.fixture(params=[*sorted(tiny.EVERY), *sorted(tiny_families.BUILDERS)])
def backbone(request: pytest.FixtureRequest) -> Any:
    return backbone_named(request.param)


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
    spaces = spaces_of(backbone, states.streams)
    assert spaces[0] == TEXT
    for space in spaces:
        stream = states.streams[space]
        inputs: dict[str, list[Tensor]] = {}
        with ExitStack() as hooks:
            for name, layer in readers(backbone, space).items():
                keep = lambda _, args, name=name, to=inputs: to.setdefault(name, []).append(args[0].detach())  # noqa: E731
                hooks.callback(layer.register_forward_pre_hook(keep).remove)
            predicted(backbone)
        assert inputs.keys() == readers(backbone, space).keys()
        rows = stream.read_states()
        assert rows.isfinite().all()
        width = rows.shape[-1]
        of_the_mean = {site.module.partition(".")[2] for site in backbone.sites(["text.mean"]).values()}
        for name, calls in inputs.items():
            if name in of_the_mean:  # of all states that are read, those of a template before the prompt too
                [tokens] = stream.tokens
                means = [stream.states[row, : tokens.span(row).stop].mean(0) for row in range(len(PROMPTS))]
                torch.testing.assert_close(calls[0], torch.stack(means), rtol=1e-4, atol=1e-5)
                continue
            assert calls[0].shape[-1] == width or space == "pooled"
            received = torch.cat([call.flatten(0, -2) for call in calls])
            distances = torch.cdist(rows.double(), received[:, :width].double())
            assert distances.min(dim=1).values.max() < 1e-3


def test_a_map_of_the_rows_is_an_edit_of_their_readers(backbone: Any) -> None:
    for space in spaces_of(backbone, backbone.read(PROMPTS).streams):
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
        moved = (edited - plain).abs().max()
        assert moved > 1e-5
        assert (edited - expected).abs().max() < 1e-2 * moved


def test_a_closed_form_moves_the_name_in_every_stream(backbone: Any) -> None:
    edit = fitted(backbone)
    spaces = spaces_of(backbone, backbone.read(PROMPTS).streams)
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
    """Return a closed form of one prompt in every stream of the text."""
    pair = PromptPair.of("a photo of a {}", "cat", "dog", "a photo of a dog")
    places = Places(words="all", trailing=0.5, trailing_states=2)
    problems = pair_problems(backbone, {pair: 1.0}, {}, places, reg=1e-3)
    concept = Concept(target="cat", anchor="dog")
    layers = lambda space: list(backbone.sites(reads=space))  # noqa: E731
    return WeightEdit.from_problems(problems, layers, EditMetadata.of("uce", {}, backbone, [concept], 0))
