"""Attention maps of layers in which image and text attend to both: intercepted, since no hook sees queries and keys.

A `TorchFunctionMode` that is in force while the layer runs sees the arguments of its fused attention: queries and keys
after their norms and rotary embeddings. Processors and outputs stay as they are.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import InputError

Seen = dict[str, Tensor]
"""Arguments of fused attention: "query" of the image's pixels and "key" of all tokens, (batch, heads, n, dim)."""

_ARGUMENTS = ("query", "key", "value", "attn_mask")


def is_joint(module: nn.Module) -> bool:
    """Return True for a layer with joint attention of image and text, each with projections of its own."""
    return getattr(module, "add_k_proj", None) is not None


def watch(name: str, attention: nn.Module, hooks: ExitStack, leave: Callable[[nn.Module, Seen, range], None]) -> None:
    """Hook a layer until `hooks` closes.

    Args:
        name: Name of the layer, for errors.
        attention: The layer.
        hooks: Closes what was opened.
        leave: Receives the layer, what was seen, and the positions of the text among the keys.

    Raises:
        InputError: When the layer runs without fused attention of PyTorch.
    """
    running: list[tuple[_Interception, int]] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        mode = _Interception()
        running.append((mode, 0 if text is None else text.shape[1]))
        mode.__enter__()

    def finish(module: nn.Module, args: object, output: object) -> None:
        mode, length = running.pop()
        mode.__exit__(None, None, None)
        if "key" not in mode.seen or not length:
            raise InputError(
                f"attention: expected {name} to run the fused attention of PyTorch over image and text, got another"
                " kernel. Set the attention backend to native."
            )
        total = mode.seen["key"].shape[2]
        # Last in Stable Diffusion 3, first in all other families.
        last = type(getattr(module, "processor", None)).__name__.startswith("JointAttn")
        text = range(total - length, total) if last else range(length)
        pixels = slice(length, total) if text.start == 0 else slice(0, total - length)
        leave(module, {**mode.seen, "query": mode.seen["query"][:, :, pixels]}, text)

    hooks.callback(attention.register_forward_pre_hook(enter, with_kwargs=True).remove)
    # Also after an exception, so that no interception stays in force.
    hooks.callback(attention.register_forward_hook(finish, always_call=True).remove)


class _Interception(TorchFunctionMode):
    """Interception of the arguments of the last fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Seen = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            self.seen = {name: named[name] for name in ("query", "key") if name in named}
        return func(*args, **kwargs)
