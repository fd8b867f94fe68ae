"""New words of a model: an entry in each of its tokenizers, and a row of its own in each text encoder's table."""
# pyright: reportUnknownMemberType=false
# Tokenizers of transformers have types in part.

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbones import backbone_of
from ..backbones.base import Backbone
from ..errors import InputError
from .changes import Change


@dataclass(frozen=True, kw_only=True, eq=False)
class NewToken:
    """A word that is new to a model.

    Attributes:
        text: Spelling in prompts: "<biscuit>".
        rows: Embedding by text encoder: "text_encoder", and "text_encoder_2" where there are two.
    """

    text: str
    rows: Mapping[str, Float[Tensor, " dim"]]

    def check_finite(self) -> None:
        """Raise InputError unless every row is finite."""
        for component, row in self.rows.items():
            if not row.isfinite().all():
                raise InputError(
                    f"token {self.text!r}: expected finite numbers in its row of {component}, got inf or nan."
                    " Learn it again, with a smaller rate."
                )


@contextmanager
def tokens_added(pipe: DiffusionPipeline, tokens: Sequence[NewToken]) -> Generator[None]:
    """Add some new words to the pipeline for the length of a `with`; on exit it is as it was, bit for bit.

    The pipeline gets other tokenizers for that time: copies with the words.

    Raises:
        InputError: A word that its tokenizers know already, or rows for other encoders than it has.
    """
    undo = add_tokens(pipe, tokens)
    try:
        yield
    finally:
        undo()


def add_tokens(pipe: DiffusionPipeline, tokens: Sequence[NewToken]) -> Callable[[], None]:
    """Add new words to the pipeline for good, and return the function that removes them; see `tokens_added`."""
    backbone = backbone_of(pipe)
    known = backbone.tokenizers()
    for token in tokens:
        check_new(backbone, token)
    undone: list[Callable[[], None]] = []
    for component, tokenizer in known.items() if tokens else ():
        encoder = _text_encoder(backbone, component)
        rows = torch.stack([token.rows[component] for token in tokens])
        extended = copy.deepcopy(tokenizer)
        extended.add_tokens([token.text for token in tokens])
        undone.append(_put(pipe, component.replace("text_encoder", "tokenizer"), extended))
        undone += _grow(encoder, rows, cast("int", tokenizer.eos_token_id))

    def undo() -> None:
        for step in reversed(undone):
            step()

    return undo


def check_new(backbone: Backbone, token: NewToken) -> None:
    """Raise InputError unless a word is new to the model and has a row for each of its text encoders."""
    check_word(backbone, token.text)
    if token.rows.keys() != backbone.tokenizers().keys():
        raise InputError(
            f"token {token.text!r}: expected a row for {', '.join(backbone.tokenizers())}, got one for"
            f" {', '.join(token.rows)}. Load the model that it was learned for."
        )


def check_word(backbone: Backbone, text: str) -> None:
    """Raise InputError unless a text can become a new word of the model."""
    if not text.strip() or any(character.isspace() for character in text):
        raise InputError(f"token: expected one word, got {text!r}. Write for example '<biscuit>'.")
    for tokenizer in backbone.tokenizers().values():
        if text in tokenizer.get_vocab() or len(tokenizer.tokenize(text)) == 1:
            raise InputError(f"token: expected a word that is new to the model, got {text!r}. Write it '<{text}>'.")


def table_name(backbone: Backbone, component: str) -> str:
    """Return the full name of the parameter that holds a text encoder's words, a row each."""
    encoder = _text_encoder(backbone, component)
    table = encoder.get_input_embeddings().weight
    return next(f"{component}.{name}" for name, parameter in encoder.named_parameters() if parameter is table)


def mean_row(backbone: Backbone, component: str, phrase: str) -> Float[Tensor, " dim"]:
    """Return the mean of the rows of a phrase's tokens, float32 on the CPU.

    Raises:
        InputError: The phrase has no tokens.
    """
    ids = cast("list[int]", backbone.tokenizers()[component](phrase, add_special_tokens=False).input_ids)
    if not ids:
        raise InputError(f"initializer: expected words, got {phrase!r}. Name what the new word should start from.")
    encoder = _text_encoder(backbone, component)
    return cast("nn.Embedding", encoder.get_input_embeddings()).weight[ids].detach().float().mean(0).cpu()


def moved_tokens(tokens: Sequence[NewToken], changes: Mapping[str, Change]) -> tuple[NewToken, ...]:
    """Return new words with their rows changed.

    Args:
        tokens: As they were.
        changes: By text encoder: of the rows of these words, in order.
    """
    moved = {component: change.of(torch.empty(0)) for component, change in changes.items()}
    return tuple(
        NewToken(text=token.text, rows={part: (row + moved[part][i]).float() for part, row in token.rows.items()})
        for i, token in enumerate(tokens)
    )


def _text_encoder(backbone: Backbone, component: str) -> PreTrainedModel:
    return cast("PreTrainedModel", backbone.component(component))


def _put(holder: object, name: str, value: object) -> Callable[[], None]:
    """Set an attribute, and return the function that restores it."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    return lambda: setattr(holder, name, before)


def _grow(encoder: PreTrainedModel, rows: Float[Tensor, "n dim"], end: int) -> list[Callable[[], None]]:
    """Append rows to an encoder's table, and return the functions that remove them.

    An encoder whose configuration has the old number for the end of text reads its sentence vector at the largest id,
    which would be that of a new word; it is told the true end.
    """
    table = cast("nn.Parameter", encoder.get_input_embeddings().weight)
    original = table.data
    table.data = torch.cat([original, rows.to(original)])

    def shrink() -> None:
        table.data = original.to(table.device, table.dtype)

    readers = [module for module in encoder.modules() if isinstance(module.__dict__.get("eos_token_id"), int)]
    return [
        shrink,
        *(_put(reader, "eos_token_id", end) for reader in readers),
        *(_put(config, "eos_token_id", end) for config in {id(m.config): m.config for m in readers}.values()),
        _put(encoder.config.get_text_config(), "vocab_size", len(table)),
    ]
