"""Memory that a training takes, before it starts: weights, activations with and without checkpointing, optimiser."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ...backbones.base import Backbone
from ...errors import InputError
from ...io.memory import free_memory, in_words
from ..context import TrainingTask
from .activations import kept_for_gradient

logger = logging.getLogger(__name__)

_FLOAT32 = 4  # bytes
_ALWAYS = 2**28  # bytes of weights from which a training is estimated even where nobody reads the estimate
_MOMENTS = 2  # of Adam, beside the leaf and its gradient, all of the leaf's own type


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of memory that a training takes on the denoiser's device.

    Attributes:
        weights: Loaded components on the device.
        activations: Values that one pass keeps for its gradient; None where they cannot be counted.
        checkpointed: The same with the blocks of the denoiser computed again in the backward pass, at most; None where
            they cannot be counted, or where the model does not compute the same again.
        optimiser: Trained tensors with their gradients and moments, float32.
    """

    weights: int
    activations: int | None
    checkpointed: int | None
    optimiser: int

    def beyond(self, *, checkpointing: bool) -> int:
        """Return the bytes beyond the weights; activations that cannot be counted are left out."""
        return self.optimiser + ((self.checkpointed if checkpointing else self.activations) or 0)

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "with checkpointing": self.checkpointed,
            "optimiser": self.optimiser,
        }
        return ", ".join(f"{name} {in_words(size)}" for name, size in parts.items() if size is not None)


def check_room(task: TrainingTask, rank: int | None, *, checkpointing: bool) -> None:
    """Log the memory of a training, and refuse one that the device has no room for.

    Args:
        task: Model, trained weights and number of latents of a pass.
        rank: Rank of the patches that are trained instead of the weights; None trains the weights.
        checkpointing: Whether activations of blocks are computed again.

    Raises:
        InputError: The device has less free memory; the error names the cheaper choice.
    """
    backbone, device = task.backbone, task.backbone.device
    if not logger.isEnabledFor(logging.INFO) and _size(backbone.denoiser) < _ALWAYS:
        return
    need = training_memory(backbone, task.trained, rank, task.batch_size)
    logger.info("memory: %s", need)
    free, beyond = free_memory(device), need.beyond(checkpointing=checkpointing)
    if free is None or beyond <= free:
        return
    cheaper = need.beyond(checkpointing=True)
    choice = (
        f"Set eraser.shape.checkpointing=true, which takes {in_words(cheaper)}."
        if need.checkpointed is not None and not checkpointing and cheaper <= free
        else "Remove by a closed form, which trains nothing: --method uce, with --low-memory."
    )
    raise InputError(
        f"training: expected {in_words(beyond)} free on {device} beside the weights ({need}), got {in_words(free)}."
        f" {choice}"
    )


def training_memory(
    backbone: Backbone, which: Callable[[str], bool], rank: int | None, batch_size: int
) -> TrainingMemory:
    """Return the memory of a training of which each step passes the denoiser once at a time."""
    modules = [part for part in backbone.pipe.components.values() if isinstance(part, nn.Module)]
    shapes = [p.shape for p in backbone.parameters(which).values() if rank is None or p.ndim > 1]
    leaves = sum(shape.numel() if rank is None else rank * (shape[0] + shape[1:].numel()) for shape in shapes)
    activations = kept_for_gradient(backbone, which, rank, batch_size)
    return TrainingMemory(
        weights=sum(_size(module, backbone.device.type) for module in modules),
        activations=None if activations is None else activations[0],
        checkpointed=min(activations) if activations is not None and backbone.checkpoints else None,
        optimiser=leaves * _FLOAT32 * (2 + _MOMENTS),
    )


def _size(module: nn.Module, device: str | None = None) -> int:
    """Return the bytes of a module's parameters, those on one kind of device alone where one is arguments."""
    counted = (p for p in module.parameters() if device is None or p.device.type == device)
    return sum(parameter.numel() * parameter.element_size() for parameter in counted)
