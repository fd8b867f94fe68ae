"""Changes of the layers that read a sentence vector."""

import torch

from ..backbones.base import Backbone
from ..closed_form.problem import TextMap
from .changes import Change, DenseChange, LowRankChange


def pooled_changes(backbone: Backbone, text_map: TextMap) -> dict[str, Change]:
    """Return the change of each layer that reads the sentence vector, in its first columns; it may read more beside it.

    Args:
        backbone: Model.
        text_map: Map of the sentence vector.
    """
    changes: dict[str, Change] = {}
    width = len(text_map.u)
    for name, parameter in backbone.parameters(backbone.sites(reads="pooled").__contains__).items():
        weight = parameter.detach().to("cpu", torch.float64)
        up = weight[:, :width] @ text_map.u
        if text_map.v is None:
            delta = torch.zeros_like(weight)
            delta[:, :width] = up
            changes[name] = DenseChange(delta=delta.float())
        else:
            down = torch.zeros(text_map.v.shape[1], weight.shape[1], dtype=torch.float64)
            down[:, :width] = text_map.v.T
            changes[name] = LowRankChange(up=up.float(), down=down.float())
    return changes
