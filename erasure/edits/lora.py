"""Weight changes as LoRA factors, in the form that `pipe.load_lora_weights` of diffusers takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..backbones import backbone_of
from ..errors import InputError
from ..typed_torch import svd
from .changes import Change, on_float64_device


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """An edit as LoRA factors.

    Attributes:
        state_dict: Factors by the PEFT names of diffusers.
        relative_error: |edit - LoRA|_F / |edit|_F over all changed parameters; 0 where every change is low-rank.
        left_out: Parameters whose change a LoRA cannot hold.
    """

    state_dict: Mapping[str, Tensor]
    relative_error: float
    left_out: tuple[str, ...] = ()


def lora_of(
    changes: Mapping[str, Change], weights: Mapping[str, Tensor], pipe: DiffusionPipeline, rank: int | None
) -> Lora:
    """Return changes as LoRA factors, exact where a change is low-rank, else its largest directions.

    Args:
        changes: By full parameter name.
        weights: Weights of the base, by the same names.
        pipe: The base.
        rank: See `WeightEdit.as_lora`.

    Raises:
        InputError: All changes would be left out, or the rank is below 1.
    """
    if rank is not None and rank < 1:
        raise InputError(f"rank: expected a whole number from 1, got {rank}. Give another.")
    state_dict: dict[str, Tensor] = {}
    left_out: list[str] = []
    missed = total = 0.0
    for name, weight in weights.items():
        change = changes[name]
        delta = change.of(on_float64_device(weight)).cpu()
        size = delta.square().sum().item()
        total += size
        module = name.removesuffix(".weight")
        if not _takes_factors(pipe, module):
            left_out.append(name)
            missed += size
            continue
        up, down = _cut(delta.flatten(1), change.factors(weight), rank)
        missed += (delta.flatten(1) - up @ down).square().sum().item()
        # The factors of a convolution are a convolution with few output channels and one over a single pixel.
        single = [1] * (delta.ndim - 2)
        state_dict[f"{module}.lora_A.weight"] = down.float().reshape(-1, *delta.shape[1:]).contiguous()
        state_dict[f"{module}.lora_B.weight"] = up.float().reshape(*up.shape, *single).contiguous()
    if not state_dict:
        raise InputError(
            f"as_lora: expected a change of linear or convolutional layers, got {', '.join(left_out) or 'none'}."
            " Use save or merge_into."
        )
    error = (missed / total) ** 0.5 if total else 0.0
    return Lora(state_dict=state_dict, relative_error=error, left_out=tuple(left_out))


def _takes_factors(pipe: DiffusionPipeline, module: str) -> bool:
    """Return True for the name of a layer that LoRA factors can be added to, False for a bias or a norm."""
    part, _, inner = module.partition(".")
    try:
        layer = backbone_of(pipe).component(part).get_submodule(inner)
    except AttributeError:  # a parameter: a bias, or one that is not the weight of a layer
        return False
    return isinstance(layer, nn.Linear | nn.Conv2d)


def _cut(delta: Tensor, factors: tuple[Tensor, Tensor] | None, rank: int | None) -> tuple[Tensor, Tensor]:
    """Return up and down with at most `rank` directions, the best in the least-squares sense."""
    if factors is not None and (rank is None or factors[0].shape[1] <= rank):
        return factors
    left, values, right = svd(delta)
    kept = max(1, len(values) // 2) if rank is None else rank
    return left[:, :kept] * values[:kept], right[:kept]
