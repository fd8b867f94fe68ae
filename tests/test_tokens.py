"""New words: learned by a pipeline for the length of a `with`, read at the right end, taken back bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import EditMetadata, LowRankChange, WeightEdit
from erasure.edits.tokens import NewToken, add_tokens, check_word, mean_row, table_name, tokens_added
from erasure.errors import InputError
from tests import tiny

FAMILIES = sorted(tiny.FAMILIES)


def word(pipe: Any, text: str = "<biscuit>", value: float = 0.3) -> NewToken:
    backbone = backbone_of(pipe)
    return NewToken(text=text, rows={part: torch.full((tiny.WIDTH,), value) for part in backbone.tokenizers()})


def state(pipe: Any) -> dict[str, Tensor]:
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": v.clone() for name, part in modules.items() for key, v in part.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_is_known_inside_and_all_is_as_it_was_after(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    backbone, before = backbone_of(pipe), state(pipe)
    tokenizers, configs = backbone.tokenizers(), pipe.text_encoder.config.to_dict()
    fingerprint, plain = backbone.fingerprint(), backbone.encode(["a photo of a dog"])
    with tokens_added(pipe, [word(pipe)]):
        read = backbone.encode(["a photo of a <biscuit> dog"])
        [at] = read.word_positions(0, "<biscuit>")
        assert read.ids[0, at] == len(pipe.tokenizer) - 1
        assert backbone.fingerprint() != fingerprint
        assert pipe.text_encoder.config.vocab_size == len(pipe.tokenizer)
        assert torch.equal(backbone.encode(["a photo of a dog"]).states, plain.states)  # other prompts read as before
    after = state(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert backbone.tokenizers() == tokenizers
    assert pipe.text_encoder.config.to_dict() == configs
    assert "<biscuit>" not in pipe.tokenizer.get_vocab()


def test_an_exception_inside_takes_the_word_back_too() -> None:
    pipe = tiny.sd1()
    before = state(pipe)
    with pytest.raises(ZeroDivisionError), tokens_added(pipe, [word(pipe)]):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in state(pipe).items())


def test_the_sentence_vector_is_read_at_the_end_of_text_although_the_new_word_has_the_largest_id() -> None:
    pipe = tiny.sdxl()
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        for module in encoder.modules():
            if "eos_token_id" in module.__dict__:
                module.eos_token_id = 2  # as Stable Diffusion XL's own configuration has it
    backbone = backbone_of(pipe)
    with tokens_added(pipe, [word(pipe)]):
        one, other = backbone.encode(["a <biscuit> dog", "a <biscuit> cat"]).pooled  # type: ignore[misc]
        assert not torch.allclose(one, other)  # read at the word itself it would not have seen what comes after
    legacy = [m.eos_token_id for m in pipe.text_encoder_2.modules() if "eos_token_id" in m.__dict__]
    assert set(legacy) == {2}


@pytest.mark.parametrize("text", ["", "  ", "two words", "a", "<|endoftext|>"])
def test_what_cannot_be_a_new_word_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"token: expected (one word|a word that is new)"):
        check_word(backbone_of(tiny.sd1()), text)


def test_a_word_learned_already_and_rows_for_other_encoders_are_refused() -> None:
    pipe = tiny.sd1()
    with tokens_added(pipe, [word(pipe)]), pytest.raises(InputError, match="new to the model"):
        add_tokens(pipe, [word(pipe)])
    with pytest.raises(InputError, match="expected a row for text_encoder, text_encoder_2"):
        add_tokens(tiny.sdxl(), [word(pipe)])


def edit_of(pipe: Any, *tokens: NewToken) -> WeightEdit:
    backbone = backbone_of(pipe)
    name = next(iter(tiny.text_weights(backbone)))
    rows, columns = backbone.parameters({name}.__contains__)[name].shape
    change = LowRankChange(up=torch.ones(rows, 1), down=torch.full((1, columns), 0.01))
    metadata = EditMetadata.of("test", {}, backbone, [Concept(target="<biscuit> dog")], 0)
    return WeightEdit(changes={name: change}, metadata=metadata, tokens=tokens)


def test_an_edit_brings_its_words_and_keeps_them_on_disk(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    edit = edit_of(pipe, word(pipe), word(pipe, "<rusty>", -0.2))
    loaded = WeightEdit.load(edit.save(tmp_path / "edit.safetensors"))
    before = state(pipe)
    prompts = ["a <biscuit> dog and <rusty>"]
    with edit.applied_to(pipe):
        inside = backbone_of(pipe).encode(prompts).states
        weights = state(pipe)
    with loaded.applied_to(pipe):
        assert torch.equal(backbone_of(pipe).encode(prompts).states, inside)
    assert all(torch.equal(value, before[name]) for name, value in state(pipe).items())
    merged = tiny.sd1()
    edit.merge_into(merged)
    assert all(torch.equal(value, weights[name]) for name, value in state(merged).items())
    merged.save_pretrained(tmp_path / "model")
    again = type(merged).from_pretrained(tmp_path / "model")
    assert torch.equal(backbone_of(again).encode(prompts).states, inside)


def test_a_merge_that_cannot_add_its_word_changes_nothing() -> None:
    pipe = tiny.sd1()
    edit = edit_of(pipe, word(pipe, "a"))
    before = state(pipe)
    with pytest.raises(InputError, match="new to the model"):
        edit.merge_into(pipe)
    assert all(torch.equal(value, before[name]) for name, value in state(pipe).items())


def test_words_of_composed_and_joint_edits_are_all_there_at_any_strength() -> None:
    pipe = tiny.sd1()
    one, other = edit_of(pipe, word(pipe)), edit_of(pipe, word(pipe, "<rusty>"))
    for both in (
        WeightEdit.compose([one, other]),
        WeightEdit.joint([one, other]),
        WeightEdit.compose([one, other]).scaled(0.0),
    ):
        with both.applied_to(pipe):
            assert {"<biscuit>", "<rusty>"} <= pipe.tokenizer.get_vocab().keys()


def test_a_row_can_start_from_words_and_the_table_has_a_name() -> None:
    backbone = backbone_of(tiny.sd1())
    name = table_name(backbone, "text_encoder")
    table = backbone.parameters({name}.__contains__)[name]
    ids = backbone.pipe.tokenizer("dog", add_special_tokens=False).input_ids
    assert torch.allclose(mean_row(backbone, "text_encoder", "dog"), table[ids].mean(0))
    with pytest.raises(InputError, match="initializer: expected words"):
        mean_row(backbone, "text_encoder", "")
