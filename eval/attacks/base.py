"""Interface of an attack: settings, and a search for token ids that bring a removed concept back."""

from abc import abstractmethod
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from erasure.backbones import Backbone
from erasure.concept import Concept, normalized
from erasure.errors import InputError
from erasure.progress import OnProgress
from erasure.registry import Plugin

Access = Literal["prompt", "sampler", "image", "gradient", "weights", "inside"]
"""Access to a model that an attack or a probe needs, from the least to the most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Goal:
    """Concept that an attack or a probe should bring back.

    Attributes:
        concept: Removed concept.
        prompt: Prompt that asks for it.
        seed: Seed of everything random, >= 0.
        latents: Latents of images that the original model samples for the prompt, for attacks that use the denoiser's
            gradient.
    """

    concept: Concept
    prompt: str
    seed: int
    latents: Float[Tensor, "n c h w"] | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(Plugin):
    """A search for token ids; its fields are its settings.

    Attributes:
        name: Name on the command line.
        access: Access to the model: "gradient" searches through the attacked denoiser; "prompt" needs the text encoder
            alone, so its results hold for every denoiser with that encoder.
    """

    access: ClassVar[Literal["prompt", "gradient"]]

    @abstractmethod
    def search(
        self, backbone: Backbone, goal: Goal, *, on_progress: OnProgress | None = None
    ) -> Int[Tensor, "m tokens"]:
        """Return rows of ids, the most promising first; at least one. They are not decoded and tokenized again.

        Args:
            backbone: Model; for an attack with access "gradient" with the edit applied.
            goal: Concept to bring back, and its prompt.
            on_progress: Receives each round of the search.

        Raises:
            InputError: Latents are missing that the attack needs, or a prompt has too many tokens.
        """


class Tokens:
    """Vocabulary of a model without the tokens that an attack may not use, and rows of its ids.

    Raises:
        InputError: The model does not encode rows of ids.
    """

    def __init__(self, backbone: Backbone, banned: Sequence[str] = ()) -> None:
        if "token ids" not in backbone.abilities:
            raise InputError(
                f"attack: expected a model whose text encoders share one vocabulary, got {backbone.family}."
                " Use a probe that searches no words, such as wordings."
            )
        tokenizer = backbone.pipe.tokenizer
        self._tokenizer = tokenizer
        self.length: int = tokenizer.model_max_length
        special = {*tokenizer.all_special_ids, tokenizer.pad_token_id}
        words = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
        parts = {index for word in banned for index in self.of(word)}
        names = [normalized(word) for word in banned]
        self.allowed = torch.tensor(
            [
                index
                for index, word in enumerate(words)
                if index not in special and index not in parts and not any(name in normalized(word) for name in names)
            ]
        )

    def of(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def rows(self, tokens: Int[Tensor, "n k"]) -> Int[Tensor, "n tokens"]:
        """Return rows of full length for some tokens: start, tokens, end, padding.

        Raises:
            InputError: The tokens exceed the length of a row.
        """
        tokenizer = self._tokenizer
        n, k = tokens.shape
        if k > self.length - 2:
            raise InputError(f"attack: expected at most {self.length - 2} tokens a prompt, got {k}. Use fewer.")
        rows = torch.full((n, self.length), tokenizer.pad_token_id)
        rows[:, 0] = tokenizer.bos_token_id
        rows[:, 1 : 1 + k] = tokens
        rows[:, 1 + k] = tokenizer.eos_token_id
        return rows

    def draw(self, n: int, k: int, generator: torch.Generator) -> Int[Tensor, "n k"]:
        """Return tokens drawn uniformly from the allowed ones."""
        return self.allowed[torch.randint(len(self.allowed), (n, k), generator=generator)]


@contextmanager
def soft_tokens(backbone: Backbone, weights: Float[Tensor, "k vocabulary"], first: int = 1) -> Generator[None]:
    """Replace k token embeddings of every row by mixtures of tokens while open, with gradient.

    Args:
        backbone: Model.
        weights: Weight of each token at each position; a row with a single 1 is that token.
        first: First of the k positions.
    """

    def mixed(module: nn.Embedding, args: tuple[object, ...], embedded: Tensor) -> Tensor:
        table = module.weight
        mixture = (weights.to(table) @ table).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :first], mixture, embedded[:, first + len(weights) :]], dim=1)

    encoders: list[PreTrainedModel] = [
        part for name, part in backbone.pipe.components.items() if name.startswith("text_encoder") and part is not None
    ]
    with ExitStack() as hooks:
        for encoder in encoders:
            hooks.callback(encoder.get_input_embeddings().register_forward_hook(mixed).remove)
        yield


def pooled(backbone: Backbone, ids: Int[Tensor, "n tokens"]) -> Float[Tensor, "n dim"]:
    """Return the states at the first end-of-text token, where CLIP pools a sentence, with gradient."""
    read = backbone.encode_ids(ids)
    return read.states[torch.arange(len(read)), read.eot].float()
