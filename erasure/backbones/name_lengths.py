"""Names that a model reads whole and as words: one check for every eraser, before anything is fitted."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from ..concept import Concept, normalized
from ..errors import InputError
from ..io.text import shortened
from ..prompts import preserved_templates, templates
from .base import Backbone
from .sd import textual_inversion_applied


def check_names(concepts: Sequence[Concept], backbone: Backbone, lines: Mapping[str, str] | None = None) -> None:
    """Refuse a concept with a name that one of the text encoders would cut in a prompt of its kind, or read otherwise.

    A prompt may be cut behind the name: the context there stands for anything else.

    Args:
        concepts: The concepts.
        backbone: The model.
        lines: For errors, the line of a file that each concept is from, by its normalized target; None without files.

    Raises:
        InputError: A target, an alias, an anchor or a preserved name is too long, and the error says by how much; or it
            holds the sign of a special token, such as the end of text, which all prompts have; or nothing of it is in
            the vocabulary, so that it is read as any other such name.
    """
    for encoder, tokenizer in backbone.tokenizers().items():
        # A single sign, such as the "!" by which some models pad, is a word as well.
        special = [str(token) for token in tokenizer.all_special_tokens if len(str(token)) > 1]
        limit = backbone.token_limits()[encoder] - tokenizer.num_special_tokens_to_add()
        for concept in concepts:
            line = (lines or {}).get(normalized(concept.target))
            for field, frames, names in _names(concept):
                where = f"{line}: concept.{field}" if line else f"concept.{field}"
                room = limit - max(map(len, _ids(tokenizer, [frame.partition("{}")[0].strip() for frame in frames])))
                texts = [textual_inversion_applied(backbone.pipe, name, tokenizer) for name in names]
                for name, ids in zip(names, _ids(tokenizer, texts), strict=True):
                    if len(ids) > room:
                        raise InputError(
                            f"{where}: expected a name of at most {room} tokens, got {shortened(name)} of"
                            f" {len(ids)}. Shorten it."
                        )
                    if _is_unknown(ids, tokenizer):
                        raise InputError(
                            f"{where}: expected words that the {encoder} knows, got {shortened(name)}, nothing of which"
                            " is in its vocabulary. Name it in other words."
                        )
                    if token := next((token for token in special if token in name), None):
                        raise InputError(
                            f"{where}: expected words, got {name!r} with the special token {token!r}. Leave it out."
                        )


def _names(concept: Concept) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yield each field with names, with the templates that they stand in."""
    frames = templates(concept.kind)
    yield "target", frames, (concept.target,)
    yield "aliases", frames, concept.aliases
    yield "anchor", frames, (concept.anchor,) if concept.anchor else ()
    yield "preserve", preserved_templates(concept.kind), concept.preserve


def _is_unknown(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if the tokens of a name are none, or the one that stands for all that is in no vocabulary."""
    unknown = cast("int | None", tokenizer.unk_token_id)
    if ids and unknown not in ids:
        return False
    known = [each for each in ids if each != unknown]
    return not cast("str", tokenizer.decode(known)).strip()


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, special ones left out."""
    if not texts:
        return []
    # A length that is never reached: without one the tokenizer warns of each long text.
    rows = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=1_000_000).input_ids
    return cast("list[list[int]]", rows)
