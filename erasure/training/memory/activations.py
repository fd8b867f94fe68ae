"""Count of the values that a pass keeps for its gradient, on a model of the same sizes that has no values."""

import copy
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ...backbones.base import Backbone
from ..student import Student

logger = logging.getLogger(__name__)


class _Fused(torch.autograd.Function):
    """Attention that keeps what fused kernels do: its inputs, its mask as numbers, and its output, without scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return an output of the right shape; values are of no use here."""
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        added = None if mask is None or mask.dtype == query.dtype else torch.empty_like(mask, dtype=query.dtype)
        ctx.save_for_backward(query, key, value, output, mask if added is None else added)
        return output


class _WithoutValues(TorchFunctionMode):
    """Has a pass of tensors without values go through where a model looks at some.

    Attention is counted as fused kernels compute it: without values, torch would choose the plain form. Lengths and
    masks of texts, which are of whole numbers, stay where they have values, and lose them where they meet a tensor
    without. Tokens that are handed out to experts all go to one, which is as much work.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            arguments = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
            mask = arguments.get("attn_mask")
            if mask is not None and not mask.is_meta:
                mask = _without_values_of(mask)
            return _Fused.apply(arguments["query"], arguments["key"], arguments["value"], mask)
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        first = tensors[0] if tensors else None
        if func is Tensor.to and first is not None and not (first.is_meta or first.is_floating_point()):
            types_of = [each for each in (*args[1:], *kwargs.values()) if isinstance(each, torch.dtype)]
            return first.to(types_of[0]) if types_of else first
        if func in (Tensor.bincount, torch.bincount) and first is not None and first.is_meta:
            return torch.tensor([first.numel()])
        if func is torch.tensor:
            values = torch.tensor(*args, **{**kwargs, "device": "cpu"})
            return values if not values.is_floating_point() else values.to("meta")
        if len({each.is_meta for each in tensors}) > 1:
            args, kwargs = tree_map_only(Tensor, _without_values_of, (args, kwargs))
        return func(*args, **kwargs)


def _without_values_of(tensor: Tensor) -> Tensor:
    """Return a tensor without values; a single number, such as a size, keeps its own."""
    return torch.empty_like(tensor, device="meta") if tensor.ndim else tensor


class _Kept:
    """The storages that autograd keeps for a backward pass, by the block of the denoiser in whose pass they are."""

    def __init__(self) -> None:
        self.block: nn.Module | None = None
        self.inputs: dict[int, Tensor] = {}
        self.tensors: dict[int, tuple[nn.Module | None, Tensor]] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is kept; see `torch.autograd.graph.saved_tensors_hooks`."""
        self.tensors.setdefault(_storage(tensor), (self.block, tensor))
        return tensor

    def enter(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note the inputs of a block."""
        self.block = module
        arguments = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self.inputs |= {_storage(value): value for value in arguments}

    def leave(self, *_: object) -> None:
        """Note the end of a block's pass."""
        self.block = None

    def sizes(self, weights: set[int]) -> tuple[int, int]:
        """Return the bytes that are kept, and the most where blocks are computed again; weights are left out."""
        within: dict[nn.Module | None, int] = {None: 0}
        for storage, (block, tensor) in self.tensors.items():
            if storage not in weights:
                within[block] = within.get(block, 0) + tensor.untyped_storage().nbytes()
        inputs = sum(each.untyped_storage().nbytes() for key, each in self.inputs.items() if key not in weights)
        return sum(within.values()), within.pop(None) + inputs + max(within.values(), default=0)


def kept_for_gradient(
    backbone: Backbone, which: Callable[[str], bool], rank: int | None, n: int
) -> tuple[int, int] | None:
    """Return the bytes that a pass of n latents keeps for its gradient, plain and checkpointed, without computing it.

    It is that of a model of the same sizes on the meta device, which has no values.
    """
    conditioning, kept = backbone.encode([""]).select([0] * n), _Kept()
    twin, denoiser = _without_values(backbone)
    student = Student(twin, which, rank, torch.Generator().manual_seed(0))
    latents = torch.zeros(n, *backbone.latent_shape(), device="meta")
    with ExitStack() as hooks:
        for block in _blocks(denoiser):
            hooks.callback(block.register_forward_pre_hook(kept.enter, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(kept.leave).remove)
        hooks.enter_context(_WithoutValues())
        hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor))
        try:
            student(twin.predict, latents, torch.full((), 500, device="meta"), conditioning)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):  # of a model that looks at values
            logger.debug("activations are not counted", exc_info=True)
            return None
    return kept.sizes({_storage(tensor) for tensor in (*denoiser.parameters(), *denoiser.buffers(), *student.trained)})


def _without_values(backbone: Backbone) -> tuple[Backbone, nn.Module]:
    """Return a model with a denoiser of the same sizes that has no values, and that denoiser."""
    denoiser, kind = cast("Any", backbone.denoiser), cast("Any", type(backbone))
    with torch.device("meta"):
        # By torch's own function: that of diffusers warns of layers that have no values here.
        empty = nn.Module.to(type(denoiser).from_config(denoiser.config), backbone.dtype).requires_grad_(False).eval()
    pipe = copy.copy(backbone.pipe)
    setattr(pipe, next(iter(backbone.sites())).partition(".")[0], empty)
    return kind(pipe), empty


def _blocks(denoiser: nn.Module) -> list[nn.Module]:
    """Return the blocks of a denoiser, in the lists that it consists of."""
    return [block for part in denoiser.children() if isinstance(part, nn.ModuleList) for block in part]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
