"""An edit without the main directions of the target's features: MCU (arXiv:2605.11685)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.attention import cross_attention_layers
from ...backbones.base import Backbone
from ...backbones.layer_readings import layer_outputs, main_directions, word_regions
from ...concept import Concept, Kind
from ...registry import Exactness
from ..weight_edit import WeightEdit
from .base import Finish, with_deltas
from .passes import named_trajectories

_ROLES = ("cross.out", "joint.out")


@dataclass(frozen=True, kw_only=True)
class Minor(Finish):
    """The change of the layers that write to the image, without its part in the target's main directions.

        dW <- dW - V V^T dW

    for the output projection dW (out, in) of each cross-attention layer, and its bias. V (out, k) are the mean and the
    main directions of the layer's output over the pixels of the target, at latents of the model's trajectories for
    prompts that name it. Relearning moves along these directions first. Other weights keep their change.

    Differs from the paper: after the training; the objective `deviate` has the same during it.

    Attributes:
        components: Number of directions, the mean among them, >= 0; 0 leaves the edit as it is.
        images: Trajectories of each target, > 0.
        image_steps: Steps of a trajectory, > 1.
    """

    name: ClassVar[str] = "minor"
    source: ClassVar[str] = "arXiv:2605.11685"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"components": 2, "images": 2, "image_steps": 2})

    components: Annotated[int, Field(ge=0)] = 8
    images: Annotated[int, Field(ge=1)] = 16
    image_steps: Annotated[int, Field(ge=2)] = 20

    def applied(self, edit: WeightEdit, backbone: Backbone) -> WeightEdit:
        written = [name for name in backbone.sites(_ROLES) if name in edit.changes]
        if not self.components or not written:
            return edit
        layers = [layer for layer in cross_attention_layers(backbone) if any(_is_in(name, layer) for name in written)]
        bases = self._bases(backbone, edit.metadata.concepts, layers)

        def finished(name: str, delta: Float[Tensor, "..."]) -> Float[Tensor, "..."] | None:
            basis = next((basis for layer, basis in bases.items() if name in written and _is_in(name, layer)), None)
            return None if basis is None else outside(delta, basis.to(delta))

        return with_deltas(edit, backbone, finished)

    @torch.no_grad()
    def _bases(self, backbone: Backbone, concepts: Sequence[Concept], layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the main directions of the target's features in each layer."""
        names: list[tuple[str, Kind]] = [
            (concept.target, concept.kind) for concept in concepts for _ in range(self.images)
        ]
        styles = torch.tensor([kind == "style" for _, kind in names])
        rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        for each in named_trajectories(backbone, names, self.image_steps):
            place = (each.latents, each.timestep, each.prompts)
            outputs = layer_outputs(backbone, layers, *place)
            regions = word_regions(backbone, layers, *place, [name for name, _ in names])
            for layer in layers:
                region = regions[layer] | styles.to(regions[layer].device)[:, None]
                rows[layer].append(outputs[layer][region])
        return {layer: main_directions(torch.cat(parts), self.components) for layer, parts in rows.items()}


def outside(delta: Float[Tensor, "..."], basis: Float[Tensor, "n k"]) -> Float[Tensor, "..."]:
    """Return a change without its part in some output directions."""
    flat = delta.reshape(len(delta), -1)
    return (flat - basis @ (basis.T @ flat)).view_as(delta)


def _is_in(name: str, layer: str) -> bool:
    return name.startswith(f"{layer}.")
