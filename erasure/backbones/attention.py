"""Cross-attention maps of named layers, without changing what the layers compute.

Fused attention never shows its probabilities. A second fused call on the same queries and keys, with one-hot values,
returns exactly the wanted columns: value column j is 1 at one token and 0 elsewhere, so output column j is the
probability of that token. It is differentiable, and the pixels x tokens matrix is never built.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError, unknown_name
from .base import Backbone
from .conditioning import Conditioning
from .joint_attention import is_joint, watch
from .schedule import Timestep

Maps = Float[Tensor, "batch heads pixels tokens"]
Reduce = Callable[[str, Maps], Tensor]
Implementation = Literal["one-hot", "softmax"]


def cross_attention_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """Return the layers that attend to text, by full name ("unet.….attn2"), in the order of the backbone."""
    return layers_named(backbone, None)


def layers_named(backbone: Backbone, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the cross-attention layers of those full names; None is all.

    Raises:
        UnknownNameError: A layer that the model does not have.
    """
    if "maps" not in backbone.abilities:
        raise InputError(
            f"attention: expected a model whose attention to words is read, got {backbone.family}. Use another method."
        )
    keys = backbone.sites(("cross.k", "joint.text.k")).values()
    known = dict.fromkeys(site.module.rpartition(".")[0] for site in keys)
    layers = {}
    for name in known if names is None else names:
        if name not in known:
            raise unknown_name("cross-attention layer", name, known)
        component, _, path = name.partition(".")
        layers[name] = backbone.component(component).get_submodule(path)
    return layers


def one_hot_columns(
    query: Float[Tensor, "batch heads pixels dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    columns: Int[Tensor, "batch k"],
    mask: Float[Tensor, "batch heads #pixels tokens"] | None = None,
) -> Float[Tensor, "batch heads pixels k"]:
    """Return columns of softmax(query key^T / sqrt(dim) + mask), by fused attention on one-hot values.

    The values are padded to the width of the keys, which is what every fused kernel accepts; more columns than that
    take more than one call.
    """
    tokens, width = key.shape[-2:]
    parts: list[Tensor] = []
    for chunk in columns.split(width, dim=1):
        hot = F.one_hot(chunk.to(key.device), tokens).transpose(1, 2).to(key.dtype)
        values = F.pad(hot, (0, width - chunk.shape[1]))[:, None].expand(-1, key.shape[1], -1, -1)
        parts.append(F.scaled_dot_product_attention(query, key, values, attn_mask=mask)[..., : chunk.shape[1]])
    return torch.cat(parts, dim=-1)


def softmax_columns(
    query: Float[Tensor, "batch heads pixels dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    columns: Int[Tensor, "batch k"],
    mask: Float[Tensor, "batch heads #pixels tokens"] | None = None,
) -> Float[Tensor, "batch heads pixels k"]:
    """Return the same as `one_hot_columns` from the explicit matrix: the reference, heavy on memory."""
    maps = softmax_maps(query, key, mask)
    index = columns.to(key.device)[:, None, None, :].expand(*maps.shape[:3], -1)
    return maps.gather(-1, index)


def softmax_maps(
    query: Float[Tensor, "batch heads pixels dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    mask: Float[Tensor, "batch heads #pixels tokens"] | None = None,
) -> Maps:
    """Return softmax(query key^T / sqrt(dim) + mask), every column of it."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(dim=-1)


@contextmanager
def watched_outputs(backbone: Backbone, layers: Sequence[str], reduce: Reduce) -> Generator[dict[str, Tensor]]:
    """While entered, keep what `reduce` makes of each named layer's output in a forward pass of the denoiser.

    A layer's output is what attention adds to the hidden states, after its output projection: (batch, pixels,
    channels). The maps say where a text is read; this also says what is read there.

    Raises:
        UnknownNameError: A layer that the model does not have.
    """
    kept: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, layer in layers_named(backbone, layers).items():

            def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...], name: str = name) -> None:
                # Joint attention returns the image's part first.
                kept[name] = reduce(name, output[0] if isinstance(output, tuple) else output)

            hooks.callback(layer.register_forward_hook(keep).remove)
        yield kept


@torch.no_grad()
def layer_pixels(backbone: Backbone) -> dict[str, int]:
    """Return the number of pixels of each cross-attention layer at the model's own image size, by full name.

    One pass of the denoiser over an empty latent tells, and no map is made.
    """
    pixels: dict[str, int] = {}
    with ExitStack() as hooks:
        for name, layer in cross_attention_layers(backbone).items():

            def note(module: nn.Module, args: object, output: Tensor, name: str = name) -> None:
                pixels[name] = output.shape[1]

            hooks.callback(layer.get_submodule("to_q").register_forward_hook(note).remove)
        latents = torch.zeros(1, *backbone.latent_shape())
        backbone.predict(latents, torch.tensor(0), backbone.unconditional())
    return pixels


def layers_up_to(backbone: Backbone, max_pixels: int | None, layers: Sequence[str] | None = None) -> list[str]:
    """Return the full names of the cross-attention layers of at most so many pixels.

    Args:
        backbone: Model.
        max_pixels: Largest size at the model's own image size; None takes all.
        layers: Layers to choose from; None takes every one.

    Raises:
        InputError: None is so small.
    """
    known = list(cross_attention_layers(backbone) if layers is None else layers)
    if max_pixels is None:
        return known
    pixels = layer_pixels(backbone)
    if max_pixels < (smallest := min(pixels[layer] for layer in known)):
        raise InputError(
            f"max_pixels: expected at least {smallest}, the size of the smallest layer, got {max_pixels!r}. Raise it."
        )
    return [layer for layer in known if pixels[layer] <= max_pixels]


def average_maps(maps: Mapping[str, Maps], height: int, width: int) -> Float[Tensor, "batch tokens {height} {width}"]:
    """Return the mean over heads and over the layers that have `height` x `width` pixels.

    Raises:
        InputError: No layer has that size.
    """
    averaged = [layer.mean(dim=1) for layer in maps.values() if layer.shape[2] == height * width]
    if not averaged:
        sizes = sorted({layer.shape[2] for layer in maps.values()})
        raise InputError(
            f"attention.maps: expected a layer of {height} x {width} pixels, got layers of {sizes} pixels."
            " Capture other layers or ask for their size."
        )
    return torch.stack(averaged).mean(dim=0).transpose(1, 2).unflatten(2, (height, width))


@dataclass(kw_only=True)
class MapCapture:
    """While entered, keeps the cross-attention maps of each forward pass through some layers.

    The layers' output is that of a plain pass, to the last bit: hooks read the queries and keys that the layer itself
    makes, whatever its processor does with them, so processors are never exchanged. All hooks are gone on exit, also
    after an exception. A later pass overwrites the maps of an earlier one, layer by layer.

    Attributes:
        layers: The attention layers to watch, by name.
        tokens: Token positions whose maps are wanted, shared by the batch or one row each; None is every token, which
            needs `reduce`.
        reduce: Turns a layer's name and maps into what is kept of them.
        implementation: "one-hot" through fused attention; "softmax" is the reference.
        maps: Results by layer name, in the order of execution: probabilities in [0, 1] as float32 with gradient, or
            what `reduce` returned.

    Raises:
        InputError: Neither tokens nor reduce is given, a position is outside the text, or a layer does not make its
            queries and keys itself.
    """

    layers: Mapping[str, nn.Module]
    tokens: Sequence[int] | Int[Tensor, "batch k"] | None = None
    reduce: Reduce | None = None
    implementation: Implementation = "one-hot"
    maps: dict[str, Tensor] = field(default_factory=dict, init=False)
    _hooks: ExitStack = field(default_factory=ExitStack, init=False, repr=False)
    _ends_early: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokens is None and self.reduce is None:
            raise InputError(
                "attention.tokens: expected token positions, or a reduce for all tokens, got neither. Give one."
            )

    def __enter__(self) -> "MapCapture":
        self.maps.clear()
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                self._watch(name, layer, hooks)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def read_from(self, run: Callable[[], object]) -> dict[str, Tensor]:
        """Return the maps of a pass that ends at the last watched layer: what comes after it is not computed.

        Maps and their gradients are those of a whole pass.

        Args:
            run: Makes the pass.
        """
        self._ends_early = True
        try:
            with self:
                run()
        except _EnoughError:
            pass
        finally:
            self._ends_early = False
        return dict(self.maps)

    def _watch(self, name: str, attention: nn.Module, hooks: ExitStack) -> None:
        """Hook one layer: its mask on the way in, its queries and keys as they are made, the maps on the way out."""
        if is_joint(attention):
            watch(name, attention, hooks, lambda _, seen, text: self._keep(name, self._joint_maps(seen, text)))
            return
        seen: dict[str, Tensor] = {}

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.clear()
            mask = kwargs.get("attention_mask", args[2] if len(args) > 2 else None)
            if mask is not None:
                seen["mask"] = mask

        def keep(part: str) -> Callable[[nn.Module, object, Tensor], None]:
            def hook(module: nn.Module, args: object, output: Tensor) -> None:
                seen[part] = output

            return hook

        def leave(module: Attention, args: object, output: object) -> None:
            if not {"query", "key"} <= seen.keys():
                raise InputError(
                    f"attention: expected {name} to run its to_q and to_k, got a processor that does not."
                    " Unfuse the projections first."
                )
            maps = self._maps(module, seen)
            seen.clear()
            self._keep(name, maps)

        for handle in (
            attention.register_forward_pre_hook(enter, with_kwargs=True),
            attention.get_submodule("to_q").register_forward_hook(keep("query")),
            attention.get_submodule("to_k").register_forward_hook(keep("key")),
            attention.register_forward_hook(leave),
        ):
            hooks.callback(handle.remove)

    def _keep(self, name: str, maps: Maps) -> None:
        self.maps.pop(name, None)  # so that the order is that of this pass
        self.maps[name] = maps if self.reduce is None else self.reduce(name, maps)
        if self._ends_early and len(self.maps) == len(self.layers):
            raise _EnoughError

    def _joint_maps(self, seen: Mapping[str, Tensor], text: range) -> Maps:
        """Return the columns of the text's tokens; the image's tokens take the rest of each pixel's attention."""
        query, key = at_least_float32(seen["query"]), at_least_float32(seen["key"])
        columns = self._columns(len(key), len(text)) + text.start
        compute = one_hot_columns if self.implementation == "one-hot" else softmax_columns
        return compute(query, key, columns)

    def _maps(self, attention: Attention, seen: Mapping[str, Tensor]) -> Maps:
        """Return the wanted columns of one layer, computed in float32 or better."""
        query, key = (seen[part].unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in ("query", "key"))
        query = query if attention.norm_q is None else attention.norm_q(query)
        key = key if attention.norm_k is None else attention.norm_k(key)
        query, key = at_least_float32(query), at_least_float32(key)
        batch, _, tokens, _ = key.shape
        mask = seen.get("mask")
        if mask is not None:
            mask = attention.prepare_attention_mask(mask, tokens, batch)
            mask = mask.view(batch, attention.heads, -1, tokens).to(query.dtype)
        if self.tokens is None and self.implementation == "softmax":
            return softmax_maps(query, key, mask)
        compute = one_hot_columns if self.implementation == "one-hot" else softmax_columns
        return compute(query, key, self._columns(batch, tokens), mask)

    def _columns(self, batch: int, tokens: int) -> Int[Tensor, "batch k"]:
        columns = torch.as_tensor(range(tokens) if self.tokens is None else self.tokens, dtype=torch.long)
        if columns.numel() == 0 or columns.min() < 0 or columns.max() >= tokens:
            raise InputError(
                f"attention.tokens: expected positions from 0 to {tokens - 1}, got {columns.tolist()}."
                " Positions count from the start-of-text token."
            )
        return columns.expand(batch, -1)


@dataclass(kw_only=True)
class AttentionCapture:
    """While entered, keeps the cross-attention maps of each forward pass of the denoiser; see `MapCapture`.

        with AttentionCapture(backbone=backbone, layers=names, tokens=[2, 3]) as capture:
            backbone.predict(latents, timestep, states)
        capture.maps["unet.mid_block.attentions.0.transformer_blocks.0.attn2"]  # (batch, heads, pixels, 2)

    Attributes:
        backbone: The model to watch.
        layers: Full names of cross-attention layers; None is all.
        tokens: As in `MapCapture`, like `reduce`, `implementation` and `maps`.

    Raises:
        UnknownNameError: A layer that the model does not have.
        InputError: As in `MapCapture`.
    """

    backbone: Backbone
    layers: Sequence[str] | None = None
    tokens: Sequence[int] | Int[Tensor, "batch k"] | None = None
    reduce: Reduce | None = None
    implementation: Implementation = "one-hot"
    _capture: MapCapture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._capture = MapCapture(
            layers=layers_named(self.backbone, self.layers),
            tokens=self.tokens,
            reduce=self.reduce,
            implementation=self.implementation,
        )

    @property
    def maps(self) -> dict[str, Tensor]:
        """Results by layer name, in the order of execution."""
        return self._capture.maps

    def __enter__(self) -> "AttentionCapture":
        self._capture.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.__exit__(kind, error, trace)

    def read(
        self, latents: Float[Tensor, "n c h w"], timestep: Timestep, conditioning: Conditioning
    ) -> dict[str, Tensor]:
        """Return the maps of a pass that ends at the last watched layer; for arguments see `Backbone.predict`."""
        return self._capture.read_from(lambda: self.backbone.predict(latents, timestep, conditioning))


class _EnoughError(Exception):
    """End of a pass in which all that was wanted has been seen."""


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, and what is finer as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
