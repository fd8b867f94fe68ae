"""Readings of layers in a pass: outputs of cross-attention, regions of words, changed outputs, moments of inputs."""

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..losses.attention import otsu
from .attention import AttentionCapture, at_least_float32, layers_named, watched_outputs
from .base import Backbone
from .conditioning import Conditioning
from .schedule import Timestep

Latents = Float[Tensor, "n c h w"]
Outputs = Mapping[str, Float[Tensor, "n pixels channels"]]
Regions = Mapping[str, Bool[Tensor, "n pixels"]]


def layer_outputs(
    backbone: Backbone, layers: Sequence[str], latents: Latents, timestep: Timestep, prompts: Conditioning
) -> dict[str, Float[Tensor, "n pixels channels"]]:
    """Return the output of each named cross-attention layer of a pass, float32, with gradient."""
    with watched_outputs(backbone, layers, lambda _, output: at_least_float32(output)) as outputs:
        backbone.predict(latents, timestep, prompts)
    return outputs


@torch.no_grad()
def word_regions(
    backbone: Backbone,
    layers: Sequence[str],
    latents: Latents,
    timestep: Timestep,
    prompts: Conditioning,
    words: Sequence[str],
) -> dict[str, Bool[Tensor, "n pixels"]]:
    """Return the pixels of each layer where its attention to a word is above Otsu's threshold, mean over heads.

    Args:
        backbone: Model.
        layers: Full names of cross-attention layers.
        latents: Noised latents.
        timestep: Their timesteps.
        prompts: Encoded prompt of each.
        words: Word of each prompt, which it holds.
    """
    positions = [prompts.word_positions(row, word) for row, word in enumerate(words)]

    def reduce(_: str, maps: Float[Tensor, "n heads pixels tokens"]) -> Tensor:
        mean = maps.mean(1)
        of_words = torch.stack([mean[row][:, places].mean(-1) for row, places in enumerate(positions)])
        return otsu(of_words[:, None])[:, 0]

    capture = AttentionCapture(backbone=backbone, layers=layers, reduce=reduce, implementation="softmax")
    return capture.read(latents, timestep, prompts)


@contextmanager
def changed_outputs(backbone: Backbone, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Generator[None]:
    """Change the outputs of some cross-attention layers on their way, for the length of a `with`.

    Args:
        backbone: Model.
        changes: Function of a layer's output (n, pixels, channels), by the layer's full name.
    """
    with ExitStack() as hooks:
        for name, layer in layers_named(backbone, list(changes)).items():

            def replace(
                module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...], name: str = name
            ) -> Tensor | tuple[Tensor, ...]:
                if isinstance(output, tuple):  # joint attention: the image's part first
                    return (changes[name](output[0]), *output[1:])
                return changes[name](output)

            hooks.callback(layer.register_forward_hook(replace).remove)
        yield


def main_directions(rows: Float[Tensor, "n channels"], components: int) -> Float[Tensor, "channels k"]:
    """Return an orthonormal basis of the mean of rows and their main directions around it, `components` in all.

    Fewer where the rows span fewer.
    """
    mean = rows.double().mean(0)
    directions = torch.linalg.svd(rows.double() - mean, full_matrices=False).Vh[: components - 1]
    basis, triangle = torch.linalg.qr(torch.cat([mean[None], directions]).T)
    solid = triangle.diagonal().abs() > 1e-10 * triangle.abs().max()
    return basis[:, solid].to(rows.dtype)


@torch.no_grad()
def input_moments(
    backbone: Backbone, names: Collection[str], run: Callable[[], object]
) -> dict[str, Float[Tensor, "in in"]]:
    """Return the second moment X X^T / N of the inputs of linear layers over all tokens and passes of a run, float64.

    Args:
        backbone: Model.
        names: Full names of weights. Those of linear layers and of convolutions of one pixel count, others are left
            out.
        run: Makes the passes.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with ExitStack() as hooks:
        for name in sorted(names):
            module = _layer(backbone, name)
            if module is None:
                continue

            def watch(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                channels = args[0].movedim(1, -1) if isinstance(module, nn.Conv2d) else args[0]
                rows = channels.detach().flatten(0, -2).double()
                sums[name] = sums.get(name, 0) + rows.T @ rows
                counts[name] = counts.get(name, 0) + len(rows)

            hooks.callback(module.register_forward_pre_hook(watch).remove)
        run()
    return {name: total / counts[name] for name, total in sums.items()}


def _layer(backbone: Backbone, name: str) -> nn.Module | None:
    """Return the layer of a weight that multiplies vectors; None for another layer or a bias."""
    component, _, path = name.rpartition(".")[0].partition(".")
    module = cast("nn.Module", backbone.component(component)).get_submodule(path)
    pixelwise = isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1}
    linear = isinstance(module, nn.Linear) or pixelwise
    return module if linear and name.endswith(".weight") else None


@contextmanager
def watched_inputs(backbone: Backbone, names: Collection[str]) -> Generator[dict[str, Float[Tensor, "rows in"]]]:
    """Yield a mapping that a pass fills with the inputs of linear layers, a row for each token or pixel.

    Args:
        backbone: Model.
        names: Full names of the layers' weights.
    """
    inputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in names:
            module = _layer(backbone, name)
            if module is None:
                continue

            def keep(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                inputs[name] = args[0].detach().flatten(0, -2)

            hooks.callback(module.register_forward_pre_hook(keep).remove)
        yield inputs
