"""Names that a model reads whole and as words: one check for every eraser, before anything is fitted."""

from collections.abc import Iterator, Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from ..concept import Concept
from ..errors import InputError
from ..io.text import shortened
from ..prompts import preserved_templates, templates
from .base import Backbone
from .sd import textual_inversion_applied


def check_names(concepts: Sequence[Concept], backbone: Backbone) -> None:
    """Refuse a concept with a name that one of the text encoders would cut in a prompt of its kind, or read otherwise.

    A prompt may be cut behind the name: the context there stands for anything else.

    Raises:
        InputError: A target, an alias, an anchor or a preserved name is too long, and the error says by how much, or it
            holds the sign of a special token, such as the end of text, which all prompts have.
    """
    for encoder, tokenizer in backbone.tokenizers().items():
        # A single sign, such as the "!" by which some models pad, is a word as well.
        special = [str(token) for token in tokenizer.all_special_tokens if len(str(token)) > 1]
        limit = backbone.token_limits()[encoder] - tokenizer.num_special_tokens_to_add()
        for concept in concepts:
            for field, frames, names in _names(concept):
                room = limit - max(_lengths(tokenizer, [frame.partition("{}")[0].strip() for frame in frames]))
                texts = [textual_inversion_applied(backbone.pipe, name, tokenizer) for name in names]
                for name, length in zip(names, _lengths(tokenizer, texts), strict=True):
                    if length > room:
                        raise InputError(
                            f"concept.{field}: expected a name of at most {room} tokens, got {shortened(name)} of"
                            f" {length}. Shorten it."
                        )
                    if token := next((token for token in special if token in name), None):
                        raise InputError(
                            f"concept.{field}: expected words, got {name!r} with the special token {token!r}."
                            " Leave it out."
                        )


def _names(concept: Concept) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yield each field with names, with the templates that they stand in."""
    frames = templates(concept.kind)
    yield "target", frames, (concept.target,)
    yield "aliases", frames, concept.aliases
    yield "anchor", frames, (concept.anchor,) if concept.anchor else ()
    yield "preserve", preserved_templates(concept.kind), concept.preserve


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, special ones left out."""
    if not texts:
        return []
    # A length that is never reached: without one the tokenizer warns of each long text.
    rows = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=1_000_000).input_ids
    return [len(row) for row in cast("list[list[int]]", rows)]
