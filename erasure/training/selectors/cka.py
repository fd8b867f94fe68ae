"""MUTE's choice of the encoder's layer in which wordings meet (arXiv:2602.22562)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ...backbones.base import Backbone
from ...backbones.conditioning import TEXT
from ...errors import InputError
from ...prompts import fill, templates
from ...registry import Exactness
from ..context import TrainingTask
from .base import Selection, Selector


@dataclass(frozen=True, kw_only=True)
class Cka(Selector):
    """One layer of the text encoder, that in which all wordings of a concept are most alike.

        CKA_l = mean over pairs of wordings of |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)
        LRDS_l = E cos(same wording, other concept) - E cos(other wording, same concept)
        region = {l: CKA_l >= mean CKA, LRDS_l <= min LRDS + (alpha - 1) |min LRDS|}

    X and Y (concepts, width) are the centred states at the end of text after layer l, of the target and the preserved
    names in two wordings: templates of their kind. The layer of the largest CKA in the region is trained, the earliest
    among equals; of all layers if the region is empty. Every wording passes there, and so does everything else: other
    models that share the encoder are changed too.

    Differs from the paper: wordings of one language stand for languages.

    Attributes:
        wordings: Number of templates, >= 2.
        alpha: Factor of the least LRDS up to which a layer counts, >= 1.
    """

    name: ClassVar[str] = "cka"
    source: ClassVar[str] = "arXiv:2602.22562"
    exactness: ClassVar[Exactness] = "reconstructed"
    of_encoder: ClassVar[bool] = True

    wordings: Annotated[int, Field(ge=2)] = 6
    alpha: Annotated[float, Field(ge=1)] = 1.5

    def selected(self, task: TrainingTask) -> Selection:
        names = [name for concept in task.concepts for name in (concept.target, *concept.preserve)]
        if len(names) < 3:
            raise InputError(
                f"cka: expected at least three names to compare, got {len(names)}. Name more of what stays in preserve."
            )
        sentences = [template for template in templates(task.concepts[0].kind) if template != "{}"][: self.wordings]
        with task.reference():
            states = end_states_by_layer(task.backbone, [[fill(each, name) for name in names] for each in sentences])
        best = chosen_layer(
            [alignment(layer) for layer in states], [wording_bias(layer) for layer in states], self.alpha
        )
        inside = layer_parameters(task.backbone, best, len(states))
        trained = frozenset(name for name in inside if task.trained(name))
        if not trained:
            raise InputError("cka: expected an eraser that may train a text encoder, got another. Use tune.")
        return Selection(names=trained)


@torch.no_grad()
def end_states_by_layer(
    backbone: Backbone, wordings: Sequence[Sequence[str]]
) -> list[Float[Tensor, "wordings concepts dim"]]:
    """Return the states of prompts at the end of text after each layer of the first text encoder.

    Args:
        backbone: Model.
        wordings: Prompts of the same concepts, in each wording.
    """
    flat = backbone.encode([prompt for prompts in wordings for prompt in prompts])
    encoder = cast("PreTrainedModel", backbone.component(_first_encoder(backbone)))
    outputs = encoder(flat.ids.to(encoder.device), output_hidden_states=True).hidden_states[1:]
    rows, ends = torch.arange(len(flat), device=encoder.device), flat.eot.to(encoder.device)
    return [layer[rows, ends].float().unflatten(0, (len(wordings), -1)) for layer in outputs]


def layer_parameters(backbone: Backbone, layer: int, count: int) -> list[str]:
    """Return the names of the parameters of one of so many equal layers of the first text encoder.

    Raises:
        InputError: The encoder has no such list of layers.
    """
    first = _first_encoder(backbone)
    encoder = backbone.component(first)
    for path, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{first}.{path}.{layer}.{name}" for name, _ in module[layer].named_parameters()]
    raise InputError(f"cka: expected a text encoder with a list of {count} layers, got none. Use another selector.")


def _first_encoder(backbone: Backbone) -> str:
    """Return the name of the encoder whose states come first in the text stream: T5 in FLUX."""
    return backbone.encode([""]).streams[TEXT].tokens[0].encoder


def alignment(states: Float[Tensor, "wordings concepts dim"]) -> float:
    """Return the linear CKA of a layer's states, mean over pairs of wordings; 1 for a turn and a scale between them."""
    centred = states - states.mean(1, keepdim=True)
    grams = centred @ centred.transpose(1, 2)
    norms = grams.flatten(1).norm(dim=1)
    pairs = [(grams[i] * grams[j]).sum() / (norms[i] * norms[j]).clamp(min=1e-12) for i, j in _pairs(states)]
    return float(torch.stack(pairs).mean())


def wording_bias(states: Float[Tensor, "wordings concepts dim"]) -> float:
    """Return the mean cosine of other concepts in one wording, minus that of one concept in two wordings."""
    unit = F.normalize(states, dim=-1)
    likeness = torch.einsum("wcd,ved->wvce", unit, unit)
    concepts = states.shape[1]
    others = ~torch.eye(concepts, dtype=torch.bool, device=states.device)
    same_wording = torch.stack([likeness[i, i][others].mean() for i in range(len(states))]).mean()
    same_concept = torch.stack([likeness[i, j].diagonal().mean() for i, j in _pairs(states)]).mean()
    return float(same_wording - same_concept)


def chosen_layer(alignments: Sequence[float], biases: Sequence[float], alpha: float) -> int:
    """Return the layer of the largest alignment in the region; see `Cka`."""
    least, mean = min(biases), sum(alignments) / len(alignments)
    bound = least + (alpha - 1) * abs(least)
    region = [i for i, bias in enumerate(biases) if alignments[i] >= mean and bias <= bound] or list(range(len(biases)))
    return max(region, key=lambda i: (alignments[i], -i))


def _pairs(states: Tensor) -> list[tuple[int, int]]:
    return list(combinations(range(len(states)), 2))
