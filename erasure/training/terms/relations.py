"""TRG, token-level relationship graph distillation (arXiv:2306.12442)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ...backbones.attention import cross_attention_layers
from ...backbones.layer_readings import layer_outputs
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Loss, below
from ..student import Student
from .base import Term

_BATCH = 8
_NEAREST = 8
_WARM, _COLD, _COOLING = 0.5, 0.07, 100  # temperatures of the global part, and the updates between them


@dataclass(frozen=True, kw_only=True)
class Relations(Term):
    """Relations between the pixels of a cross-attention layer's output, kept rather than the pixels themselves.

        L = inner + local + contrast InfoNCE(T(theta), T(theta_0))
        local = mean_i KL(softmax_j A_ij(theta_0) || softmax_j A_ij(theta)),  A_ij = exp(-|T_i - T_j|^2 / (2 sigma))
        inner = |softmax(F F^T / sqrt C) - softmax(F_0 F_0^T / sqrt C)|^2   within each image, mean over entries

    T_i (channels) are `tokens` pixels drawn from the output of one layer, drawn at each step, over 8 latents of the
    reference's trajectories; j are the 8 nearest of i in the reference, sigma the median of its squared distances, F
    (pixels, channels) all pixels of an image. The temperature of InfoNCE falls from 0.5 to 0.07. No unit. `inner` and
    `local` are 0 at the reference; the floor of InfoNCE is not.

    Differs from the paper: the nearest of i are the reference's in both graphs, for the student's own have no gradient
    where the sets differ; no projection, as teacher and student have one width.

    Attributes:
        tokens: Number of pixels of the graph, > 8.
        contrast: Weight of InfoNCE, >= 0; at 0 the term is 0 at the reference.
    """

    name: ClassVar[str] = "relations"
    source: ClassVar[str] = "arXiv:2306.12442"
    exactness: ClassVar[Exactness] = "reconstructed"

    tokens: Annotated[int, Field(gt=_NEAREST)] = 256
    contrast: Annotated[float, Field(ge=0)] = 0.1

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        self.phrases(task.concepts)  # the pool's prompts
        layers = list(cross_attention_layers(backbone))

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            layer = layers[below(len(layers), generator)]
            points = task.pool.select([below(len(task.pool), generator) for _ in range(_BATCH)])
            with torch.no_grad(), task.reference():
                before = layer_outputs(backbone, [layer], *points)[layer]
            now = student(layer_outputs, backbone, [layer], *points)[layer]
            chosen = torch.randperm(before.shape[0] * before.shape[1], generator=generator)[: self.tokens]
            tokens, tokens_before = (each.flatten(0, 1)[chosen.to(each.device)] for each in (now, before))
            value = inner_relations(now, before) + local_relations(tokens, tokens_before)
            if not self.contrast:
                return value
            cooled = min(1.0, step / _COOLING)
            return value + self.contrast * matching(tokens, tokens_before, _WARM + cooled * (_COLD - _WARM))

        return loss


def inner_relations(
    now: Float[Tensor, "n pixels channels"], before: Float[Tensor, "n pixels channels"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of the pixels' attention to each other within each image."""
    graphs = [(each @ each.transpose(1, 2) / each.shape[-1] ** 0.5).softmax(-1) for each in (now, before)]
    return F.mse_loss(graphs[0], graphs[1])


def local_relations(now: Float[Tensor, "m channels"], before: Float[Tensor, "m channels"]) -> Float[Tensor, ""]:
    """Return the mean KL of the graphs of each token and its nearest ones in `before`."""
    distances = torch.cdist(before, before).square()
    off = ~torch.eye(len(before), dtype=torch.bool, device=before.device)
    sigma = distances[off].median().clamp(min=1e-12)
    count = min(_NEAREST, len(before) - 1)
    nearest = distances.masked_fill(~off, torch.inf).topk(count, largest=False).indices
    edges_before = torch.exp(-distances.gather(1, nearest) / (2 * sigma))
    edges = torch.exp(-(now[:, None] - now[nearest]).square().sum(-1) / (2 * sigma))
    return F.kl_div(edges.log_softmax(1), edges_before.log_softmax(1), log_target=True, reduction="batchmean")


def matching(
    now: Float[Tensor, "m channels"], before: Float[Tensor, "m channels"], temperature: float
) -> Float[Tensor, ""]:
    """Return InfoNCE: how well each token is told from all others by its likeness to itself before."""
    logits = F.normalize(now, dim=1) @ F.normalize(before, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(now), device=now.device))
