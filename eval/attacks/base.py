"""What every attack is: settings, and one method that turns a prompt into token ids that bring a concept back."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erasure.backbones import Backbone
from erasure.concept import Concept, normalized
from erasure.errors import InputError
from erasure.progress import OnProgress
from erasure.registry import Plugin


@dataclass(frozen=True, kw_only=True, eq=False)
class Goal:
    """What an attack is to bring back.

    Attributes:
        concept: What was removed.
        prompt: A prompt that asks for it.
        seed: Of everything random.
        latents: Of pictures that the original model made of the prompt, for attacks that look at the denoiser.
    """

    concept: Concept
    prompt: str
    seed: int
    latents: Float[Tensor, "n c h w"] | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(Plugin):
    """A search for token ids; its fields are its settings.

    Attributes:
        name: What it is called on the command line.
        white_box: Whether it looks at the denoiser that it attacks; else the text encoder is all that it needs, and
            what it finds is the same for every denoiser that reads that encoder.
    """

    white_box: ClassVar[bool]

    @abstractmethod
    def search(
        self, backbone: Backbone, goal: Goal, *, on_progress: OnProgress | None = None
    ) -> Int[Tensor, "m tokens"]:
        """Return rows of ids, the most promising first; at least one, and none of them read as text again.

        Args:
            backbone: The model; for a white-box attack with what is attacked in force.
            goal: What to bring back.
            on_progress: Receives each round of the search.

        Raises:
            InputError: A white-box attack without pictures, or more tokens than a prompt holds.
        """

    def while_sampling(self, pipe: Any, goal: Goal) -> AbstractContextManager[None]:
        """Return what is in force while pictures are made of what was found; nothing, unless an attack has it."""
        return nullcontext()


class Tokens:
    """The vocabulary of a model, less what an attack may not use, and rows made of it."""

    def __init__(self, backbone: Backbone, banned: Sequence[str] = ()) -> None:
        tokenizer = backbone.pipe.tokenizer
        self._tokenizer = tokenizer
        self.length: int = tokenizer.model_max_length
        special = {*tokenizer.all_special_ids, tokenizer.pad_token_id}
        words = tokenizer.batch_decode([[at] for at in range(len(tokenizer))])
        parts = {at for word in banned for at in self.of(word)}
        names = [normalized(word) for word in banned]
        self.allowed = torch.tensor(
            [
                at
                for at, word in enumerate(words)
                if at not in special and at not in parts and not any(name in normalized(word) for name in names)
            ]
        )

    def of(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def rows(self, tokens: Int[Tensor, "n k"]) -> Int[Tensor, "n tokens"]:
        """Return whole rows of some tokens: start, tokens, end, padding.

        Raises:
            InputError: There are more tokens than a row has place for.
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
        """Return tokens drawn evenly from those that are allowed."""
        return self.allowed[torch.randint(len(self.allowed), (n, k), generator=generator)]


@contextmanager
def soft_tokens(backbone: Backbone, weights: Float[Tensor, "k vocabulary"], first: int = 1) -> Iterator[None]:
    """Have the text encoders read mixtures of tokens at k places of every row, with gradient.

    Args:
        backbone: The model.
        weights: Of each token at each place; a row with a single 1 is that token.
        first: The first of the places.
    """

    def mixed(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        table: Any = module.weight
        own = weights.to(table) @ table
        own = own.expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :first], own, embedded[:, first + len(weights) :]], dim=1)

    encoders: list[Any] = [
        part for name, part in backbone.pipe.components.items() if name.startswith("text_encoder") and part is not None
    ]
    with ExitStack() as hooks:
        for encoder in encoders:
            hooks.callback(encoder.get_input_embeddings().register_forward_hook(mixed).remove)
        yield


def pooled(backbone: Backbone, ids: Int[Tensor, "n tokens"]) -> Float[Tensor, "n dim"]:
    """Return the states at the first end of text, where CLIP pools a sentence, with gradient."""
    read = backbone.encode_ids(ids)
    return read.states[torch.arange(len(read)), read.eot].float()
