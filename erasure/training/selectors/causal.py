"""Causal tracing of layers: KUDA (arXiv:2602.19275), after ROME (arXiv:2202.05262)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.attention import cross_attention_layers
from ...backbones.layer_readings import changed_outputs, layer_outputs
from ...errors import InputError
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..draws.noised_images import Latents, NoisedDraw, NoisedImages
from ..trajectories import encoded
from .base import Selection, Selector

_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Causal(Selector):
    """The run of cross-attention layers through which the target's name has the largest effect.

        IE = 1 - |eps_restored - eps_clean|^2 / |eps_corrupt - eps_clean|^2

    eps_clean is the reference's prediction for a noised image of the target under its prompt, eps_corrupt that under
    the same prompt without the target, and eps_restored the latter with the outputs (pixels, channels) of some layers
    put back to those of the clean run. None gives 0; all of them give 1 in a model whose text has no other path. The
    run of `window` consecutive layers with the largest mean IE is trained.

    Differs from the paper: the corrupted prompt is a twin without the name, where noise on embeddings leaves what the
    model knows.

    Attributes:
        window: Number of consecutive layers, > 0.
        images: Images of each target, > 0.
        image_steps: Sampling steps of an image, > 0.
        early: Share of the schedule that timesteps are drawn from, the noisiest part, in (0, 1].
    """

    name: ClassVar[str] = "causal"
    source: ClassVar[str] = "arXiv:2602.19275"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "image_steps": 2}

    window: Annotated[int, Field(ge=1)] = 2
    images: Annotated[int, Field(ge=1)] = 32
    image_steps: Annotated[int, Field(ge=1)] = 25
    early: Annotated[float, Field(gt=0, le=1)] = 0.6

    def selected(self, task: TrainingTask) -> Selection:
        effects = self.effects(task)
        best = max(effects, key=lambda window: effects[window])
        names = frozenset(
            name
            for name in task.backbone.parameters(task.trained)
            if any(name.startswith(f"{layer}.") for layer in best)
        )
        if not names:
            raise InputError(
                f"causal: expected trained weights in {', '.join(best)}, got none. Train cross-attention, or leave the"
                " selector out."
            )
        return Selection(names=names)

    def effects(self, task: TrainingTask) -> Mapping[tuple[str, ...], float]:
        """Return the mean IE of each run of layers.

        Raises:
            InputError: There are fewer layers than the window has.
        """
        layers = list(cross_attention_layers(task.backbone))
        if self.window > len(layers):
            raise InputError(
                f"causal.window: expected at most {len(layers)}, the number of layers, got {self.window!r}. Lower it."
            )
        windows = [tuple(layers[i : i + self.window]) for i in range(len(layers) - self.window + 1)]
        images = NoisedImages(
            task.context, task.concepts, images=self.images, image_steps=self.image_steps, early=self.early
        )
        generator = torch.Generator().manual_seed(task.context.seed)
        totals = dict.fromkeys(windows, 0.0)
        with task.reference(), torch.no_grad():
            for start in range(0, len(images.prompts), _AT_ONCE):
                batch = images.noised(range(start, min(start + _AT_ONCE, len(images.prompts))), generator)
                for window, effect in indirect_effects(task, batch, windows).items():
                    totals[window] += float(effect.sum()) / len(images.prompts)
        return totals


def indirect_effects(
    task: TrainingTask, batch: NoisedDraw, windows: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Float[Tensor, " n"]]:
    """Return the IE of restoring each set of layers, for each image of a batch, of the weights in force."""
    backbone = task.backbone
    layers = list(dict.fromkeys(layer for window in windows for layer in window))

    def predicted(named: bool) -> Latents:
        prompts = batch.named if named else blanks
        return scheduled_prediction(backbone, batch.latents, batch.timesteps, prompts)

    blanks = encoded(backbone, [prompt.blank for prompt in batch.prompts])
    clean = layer_outputs(backbone, layers, batch.latents, batch.timesteps, batch.named)
    aim = predicted(named=True)
    whole = (predicted(named=False) - aim).square().flatten(1).sum(1).clamp(min=1e-20)
    effects = {}
    for window in windows:
        restored = {layer: (lambda output, layer=layer: clean[layer].to(output)) for layer in window}
        with changed_outputs(backbone, restored):
            left = (predicted(named=False) - aim).square().flatten(1).sum(1)
        effects[window] = 1 - left / whole
    return effects
