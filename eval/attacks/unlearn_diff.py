"""UnlearnDiffAtk (Zhang et al., ECCV 2024, arXiv:2310.11868): tokens optimised through the erased denoiser itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from erasure.backbones import Backbone
from erasure.backbones.schedule import Discrete
from erasure.errors import InputError
from erasure.progress import OnProgress, Progress
from erasure.registry import Exactness

from .base import Attack, Goal, Tokens, soft_tokens


@dataclass(frozen=True, kw_only=True)
class UnlearnDiff(Attack):
    """A few tokens before the prompt with which the erased model denoises an image of the concept best.

    A diffusion model is a classifier: the smaller its denoising error of an image under a prompt, the likelier the
    prompt. For images that the original model made of the prompt, the mean squared error of the erased model's
    prediction is minimised over a distribution on the vocabulary for each of `tokens` places, with a projection onto
    the simplex after each update; the heaviest tokens are a candidate.

    As in the official code (OPTML-Group/Diffusion-MU-Attack) the loss is that of tokens drawn from the distribution,
    and its gradient, clipped to [-1, 1], goes straight through to it; Adam has L2; one timestep after another is held.
    Differs from the official code: tokens that end or start a text are not drawn; a model that predicts v is asked for
    v. The code draws an image after each timestep, in their order, at one seed; here the candidates come in an order
    that spreads any number of them over the timesteps.

    Attributes:
        relaxation: Input of the loss: "sampled" tokens, from equal weights on, with Adam, as in the code; or our
            "mixture" of the tokens' embeddings by weight, from random weights on, with AdamW.
        timesteps: Number of timesteps, the middles of equal parts of the schedule, least noisy first, each held for
            `rounds` updates; None draws one for each noised image.
        tokens: Places before the prompt; 5 in the code for nudity, 3 for objects.
        rounds: Updates, of each timestep.
        lr: Learning rate, > 0.
        weight_decay: Weight of L2, or of the decay of AdamW, >= 0.
        batch_size: Noised images an update.
    """

    name: ClassVar[str] = "unlearn-diff"
    source: ClassVar[str] = "arXiv:2310.11868"
    exactness: ClassVar[Exactness] = "published"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"tokens": 3, "rounds": 2, "timesteps": 2, "batch_size": 2})
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {
        "relaxation": {"mixture": {"timesteps": None, "batch_size": 4}}
    }
    access: ClassVar[Literal["prompt", "gradient"]] = "gradient"

    relaxation: Literal["sampled", "mixture"] = "sampled"
    timesteps: Annotated[int, Field(ge=1)] | None = 50
    tokens: Annotated[int, Field(ge=1)] = 5
    rounds: Annotated[int, Field(ge=1)] = 40
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    batch_size: Annotated[int, Field(ge=1)] = 1

    def search(
        self, backbone: Backbone, goal: Goal, *, on_progress: OnProgress | None = None
    ) -> Int[Tensor, "m tokens"]:
        if goal.latents is None:
            raise InputError(f"{self.name}: expected images of the concept, got none. Let the original draw.")
        generator = torch.Generator().manual_seed(goal.seed)
        vocabulary = Tokens(backbone)
        prompt = torch.tensor(vocabulary.of(goal.prompt), dtype=torch.long)[: vocabulary.length - 2 - self.tokens]
        allowed = torch.zeros(len(backbone.pipe.tokenizer), dtype=torch.bool)
        allowed[vocabulary.allowed] = True
        weights = self._start(allowed, generator)
        optimizer = torch.optim.Adam if self.relaxation == "sampled" else torch.optim.AdamW
        moving = optimizer([weights], lr=self.lr, weight_decay=self.weight_decay)
        held = self._held(backbone)
        finds: list[Tensor] = []
        for i, timestep in enumerate(held):
            for round_index in range(self.rounds):
                point = self._point(weights, generator)
                loss = self._loss(backbone, vocabulary, prompt, point, goal.latents, generator, timestep)
                [slope] = torch.autograd.grad(loss, point)  # and nothing else gets one
                weights.grad = slope.clamp(-1, 1) if self.relaxation == "sampled" else slope
                moving.step()
                with torch.no_grad():
                    weights.copy_(on_simplex(weights.masked_fill(~allowed, -1.0)))
                if timestep is None or round_index == self.rounds - 1:
                    finds.append(torch.cat([weights.detach().argmax(dim=1), prompt]))
                if on_progress is not None:
                    on_progress(Progress(i * self.rounds + round_index + 1, len(held) * self.rounds, self.name))
        order = reversed(range(len(finds))) if self.timesteps is None else spread(len(finds))
        rows = vocabulary.rows(torch.stack([finds[i] for i in order]))
        return torch.stack(list({tuple(row.tolist()): row for row in rows}.values()))

    def _start(self, allowed: Bool[Tensor, " vocabulary"], generator: torch.Generator) -> Float[Tensor, "k vocabulary"]:
        if self.relaxation == "sampled":
            return (allowed / allowed.sum()).repeat(self.tokens, 1)
        weights = torch.rand(self.tokens, len(allowed), generator=generator)
        return on_simplex(weights.masked_fill(~allowed, -1.0))

    def _point(
        self, weights: Float[Tensor, "k vocabulary"], generator: torch.Generator
    ) -> Float[Tensor, "k vocabulary"]:
        """Return the weights of the tokens' embeddings in the loss, as the variable of its gradient."""
        if self.relaxation == "mixture":
            return weights.detach().clone().requires_grad_()
        drawn = torch.multinomial(weights, 1, generator=generator)[:, 0]
        return F.one_hot(drawn, weights.shape[1]).float().requires_grad_()

    def _held(self, backbone: Backbone) -> list[int | None]:
        """Return the timesteps that are held, least noisy first; a single None for none."""
        if self.timesteps is None:
            return [None]
        if not isinstance(backbone.schedule, Discrete):
            raise InputError(
                f"{self.name}.timesteps: expected None for {backbone.schedule.words}, got {self.timesteps!r}. Set none."
            )
        part = backbone.schedule.total // self.timesteps
        if part < 1:
            raise InputError(
                f"{self.name}.timesteps: expected at most {backbone.schedule.total},"
                f" got {self.timesteps!r}. Hold fewer."
            )
        return [part // 2 + i * part for i in range(self.timesteps)]

    def _loss(
        self,
        backbone: Backbone,
        vocabulary: Tokens,
        prompt: Int[Tensor, " p"],
        weights: Float[Tensor, "k vocabulary"],
        latents: Float[Tensor, "n c h w"],
        generator: torch.Generator,
        held: int | None = None,
    ) -> Float[Tensor, ""]:
        clean = latents[torch.randint(len(latents), (self.batch_size,), generator=generator)].float()
        if held is None:
            timestep = backbone.schedule.drawn(self.batch_size, generator)
        else:
            timestep = torch.full((self.batch_size,), held)
        noise = torch.randn(clean.shape, generator=generator)
        clean, timestep, noise = (part.to(backbone.device) for part in (clean, timestep, noise))
        noisy = backbone.schedule.noised(clean, noise, timestep)
        rows = vocabulary.rows(torch.cat([torch.zeros(self.tokens, dtype=torch.long), prompt])[None])
        with soft_tokens(backbone, weights):
            states = backbone.encode_ids(rows).expand(self.batch_size)
        goal_output = backbone.schedule.target(clean, noise, timestep)
        return F.mse_loss(backbone.predict(noisy, timestep, states).float(), goal_output)


def spread(n: int) -> list[int]:
    """Return 0 to n - 1 in an order whose every beginning is spread over them: the middle, the quarters, ..."""
    bits = n.bit_length()
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in (*range(1, 2**bits), 0))
    return list(dict.fromkeys(place * n >> bits for place in reversed_bits))


def on_simplex(rows: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return the nearest points with entries >= 0 that add up to 1 (Duchi et al., ICML 2008, figure 1)."""
    ordered = rows.sort(dim=1, descending=True).values
    sums = ordered.cumsum(dim=1) - 1
    counts = torch.arange(1, rows.shape[1] + 1)
    support = (ordered - sums / counts > 0).sum(dim=1, keepdim=True)
    shift = sums.gather(1, support - 1) / support
    return (rows - shift).clamp(min=0)
