"""KD++: the norm and direction of features (arXiv:2305.17007)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...prompts import fill, preserved_templates
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Loss
from ..student import Student
from .base import Term


@dataclass(frozen=True, kw_only=True)
class Direction(Term):
    """Keys and values of preserved names along the mean over contexts, and no shorter than they were.

        L = mean_{l, n, y} [1 - <f(y), u_n> / max(|f(y)|, |f_0(y)|)] - its value at the reference

    f(y) = W_l E(y) is the key or value (channels) of layer l at the end of the prompt y, which names n in one of its
    sentences; u_n is the unit vector along the mean of the reference's f_0 over those sentences. While f is shorter
    than f_0 it pays to grow along u_n; beyond, the loss is 1 - cos. No unit. It can fall below 0, since contexts
    differ from their mean: variety within a class is its price.

    Differs from the paper: contexts of a name stand for the images of a class.
    """

    name: ClassVar[str] = "direction"
    source: ClassVar[str] = "arXiv:2305.17007"
    exactness: ClassVar[Exactness] = "reconstructed"
    reads: ClassVar[Literal["encoder", "text", "any"]] = "text"

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        prompts = [
            (name, fill(template, name))
            for concept in task.concepts
            for name in dict.fromkeys(concept.preserve)
            for template in preserved_templates(concept.kind)
        ]
        if not prompts:
            raise self.nothing_to_preserve()
        ends = backbone.encode([prompt for _, prompt in prompts], trailing=False).end_states.float()
        names = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in prompts))}
        groups = torch.tensor([names[name] for name, _ in prompts], device=ends.device)
        readers = backbone.sites(reads="text")
        with task.reference():
            originals = {name: p.detach().float() for name, p in backbone.parameters(readers.__contains__).items()}
        before = {name: ends @ weight.T for name, weight in originals.items()}
        floors = {name: along(features, features, groups) for name, features in before.items()}

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            weights = student.weights()
            parts = [
                along(ends @ weights[name].float().T, features, groups) - floors[name]
                for name, features in before.items()
                if name in weights
            ]
            return torch.stack(parts).mean()

        return loss


def along(
    features: Float[Tensor, "n channels"], reference: Float[Tensor, "n channels"], groups: Tensor
) -> Float[Tensor, ""]:
    """Return the mean of 1 - <f, u> / max(|f|, |f_0|), u the unit mean of the reference's features of a group."""
    sums = torch.zeros(int(groups.max()) + 1, reference.shape[1], dtype=reference.dtype, device=reference.device)
    directions = torch.nn.functional.normalize(sums.index_add(0, groups, reference), dim=1)[groups]
    lengths = features.norm(dim=1).maximum(reference.norm(dim=1)).clamp(min=1e-12)
    return (1 - (features * directions).sum(1) / lengths).mean()
