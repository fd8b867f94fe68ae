"""UnlearnDiffAtk (Zhang et al., ECCV 2024, arXiv:2310.11868): tokens optimised through the erased denoiser itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from erasure.backbones import Backbone
from erasure.errors import InputError
from erasure.progress import OnProgress, Progress
from erasure.registry import Exactness

from .base import Attack, Goal, Tokens, soft_tokens


@dataclass(frozen=True, kw_only=True)
class UnlearnDiff(Attack):
    """A few tokens before the prompt with which the erased model denoises an image of the concept best.

    A diffusion model is a classifier: the smaller its denoising error of an image under a prompt, the likelier the
    prompt. For images that the original model made of the prompt, the mean squared error of the erased model's
    prediction is minimised over mixtures of tokens at `tokens` places, by AdamW and projection onto the simplex; each
    round's heaviest tokens are one candidate.

    Differs from the official code: its start and the number of draws a round are not taken from it; a model that
    predicts v is asked for v.

    Attributes:
        tokens: Places before the prompt.
        rounds: Updates.
        lr: Learning rate of AdamW, > 0.
        weight_decay: Weight decay of AdamW, >= 0.
        batch_size: Noised images a round.
    """

    name: ClassVar[str] = "unlearn-diff"
    source: ClassVar[str] = "arXiv:2310.11868"
    exactness: ClassVar[Exactness] = "published"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"tokens": 3, "rounds": 4, "batch_size": 2})
    access: ClassVar[Literal["prompt", "gradient"]] = "gradient"

    tokens: Annotated[int, Field(ge=1)] = 5
    rounds: Annotated[int, Field(ge=1)] = 40
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    batch_size: Annotated[int, Field(ge=1)] = 4

    def search(
        self, backbone: Backbone, goal: Goal, *, on_progress: OnProgress | None = None
    ) -> Int[Tensor, "m tokens"]:
        if goal.latents is None:
            raise InputError(f"{self.name}: expected images of the concept, got none. Let the original draw.")
        generator = torch.Generator().manual_seed(goal.seed)
        vocabulary = Tokens(backbone)
        prompt = torch.tensor(vocabulary.of(goal.prompt), dtype=torch.long)[: vocabulary.length - 2 - self.tokens]
        weights = torch.rand(self.tokens, len(backbone.pipe.tokenizer), generator=generator)
        allowed = torch.zeros(weights.shape[1], dtype=torch.bool)
        allowed[vocabulary.allowed] = True
        weights = on_simplex(weights.masked_fill(~allowed, -1.0)).requires_grad_()
        moving = torch.optim.AdamW([weights], lr=self.lr, weight_decay=self.weight_decay)
        finds: list[Tensor] = []
        for round_index in range(self.rounds):
            loss = self._loss(backbone, vocabulary, prompt, weights, goal.latents, generator)
            [weights.grad] = torch.autograd.grad(loss, weights)  # and nothing else gets one
            moving.step()
            with torch.no_grad():
                weights.copy_(on_simplex(weights.masked_fill(~allowed, -1.0)))
            finds.append(torch.cat([weights.detach().argmax(dim=1), prompt]))
            if on_progress is not None:
                on_progress(Progress(round_index + 1, self.rounds, self.name))
        rows = vocabulary.rows(torch.stack(finds[::-1]))
        return torch.stack(list({tuple(row.tolist()): row for row in rows}.values()))

    def _loss(
        self,
        backbone: Backbone,
        vocabulary: Tokens,
        prompt: Int[Tensor, " p"],
        weights: Float[Tensor, "k vocabulary"],
        latents: Float[Tensor, "n c h w"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        clean = latents[torch.randint(len(latents), (self.batch_size,), generator=generator)].float()
        timestep = backbone.schedule.drawn(self.batch_size, generator)
        noise = torch.randn(clean.shape, generator=generator)
        clean, timestep, noise = (part.to(backbone.device) for part in (clean, timestep, noise))
        noisy = backbone.schedule.noised(clean, noise, timestep)
        rows = vocabulary.rows(torch.cat([torch.zeros(self.tokens, dtype=torch.long), prompt])[None])
        with soft_tokens(backbone, weights):
            states = backbone.encode_ids(rows).expand(self.batch_size)
        goal_output = backbone.schedule.target(clean, noise, timestep)
        return F.mse_loss(backbone.predict(noisy, timestep, states).float(), goal_output)


def on_simplex(rows: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return the nearest points with entries >= 0 that add up to 1 (Duchi et al., ICML 2008, figure 1)."""
    ordered = rows.sort(dim=1, descending=True).values
    sums = ordered.cumsum(dim=1) - 1
    counts = torch.arange(1, rows.shape[1] + 1)
    support = (ordered - sums / counts > 0).sum(dim=1, keepdim=True)
    shift = sums.gather(1, support - 1) / support
    return (rows - shift).clamp(min=0)
