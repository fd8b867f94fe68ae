"""Inputs of a denoiser's layers along trajectories: the image side's keys of a closed form."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ..trajectories import TrajectoryPoints
from .masked import sides


@torch.no_grad()
def in_order_of_execution(backbone: Backbone, modules: Sequence[str], places: TrajectoryPoints) -> list[str]:
    """Return the full names of layers in the order in which a pass runs them."""
    order: list[str] = []

    def note(name: str, module: nn.Module, args: object) -> None:
        order.append(name)

    handles = [_module(backbone, name).register_forward_pre_hook(partial(note, name)) for name in modules]
    try:
        _pass(backbone, places, slice(0, 1), places.conditioning)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


@torch.no_grad()
def layer_inputs(
    backbone: Backbone, module: str, places: TrajectoryPoints, rows: slice, conditioning: Conditioning
) -> Float[Tensor, "n pixels dim"]:
    """Return the input of a layer for some latents with the given prompts, a row for each latent of all places."""
    with watched_inputs(backbone, [module]) as inputs:
        _pass(backbone, places, rows, conditioning)
    return inputs[module]


@contextmanager
def watched_inputs(backbone: Backbone, modules: Sequence[str]) -> Generator[dict[str, Float[Tensor, "n pixels dim"]]]:
    """While entered, keep the input of each named layer in the last pass through it, with gradient."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept[name] = args[0]

    with ExitStack() as hooks:
        for name in modules:
            hooks.callback(_module(backbone, name).register_forward_pre_hook(partial(keep, name)).remove)
        yield kept


def inside(inputs: Float[Tensor, "n pixels dim"], masks: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n pixels"]:
    """Return which pixels of a layer's input lie inside the masks."""
    rows, columns = sides(inputs.shape[1], *masks.shape[1:])
    return (F.interpolate(masks[:, None].float(), (rows, columns), mode="nearest") > 0.5).flatten(1)


def _module(backbone: Backbone, name: str) -> nn.Module:
    component, _, path = name.partition(".")
    return backbone.component(component).get_submodule(path)


def _pass(backbone: Backbone, places: TrajectoryPoints, rows: slice, conditioning: Conditioning) -> None:
    chosen = list(range(*rows.indices(len(places.latents))))
    backbone.predict(places.latents[rows], places.timesteps[rows], conditioning.select(chosen))
