"""ClassDiffusion: what its losses reach, what it changes, what it leaves alone, and the formats of others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.edits import DenseChange, LowRankChange, WeightEdit
from erasure.edits.tokens import NewToken, moved_tokens, table_name, tokens_added
from erasure.errors import InputError, UnknownNameError
from erasure.losses.reconstruction import masked_reconstruction
from erasure.losses.semantic import cosine_preservation
from erasure.personalize.class_diffusion import ClassDiffusion, Instance
from erasure.personalize.forgetting import Forgetting
from erasure.personalize.formats import CUSTOM_DIFFUSION_FILE, LORA_FILE, custom_diffusion, write_formats
from erasure.progress import Progress
from erasure.sampling import SamplingSettings, sample
from erasure.training.finetune import Optimisation, finetune
from erasure.training.phrases import phrase_features
from erasure.training.student import Student
from tests import tiny
from tests.clip_reference import clip_states

FAMILIES = sorted(tiny.FAMILIES)
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)) for seed in range(3)
]
BISCUIT = Instance(token="<biscuit>", class_word="dog", images=PICTURES)
RUSTY = Instance(token="<rusty>", class_word="dog", images=PICTURES[:2])
SPL_ALONE: dict[str, Any] = {"lr": 1e-12, "token_lr": 3e-3, "weight_decay": 0.0}


def learned(pipe: Any, *instances: Instance, seed: int = 0, on_progress: Any = None, **settings: Any) -> WeightEdit:
    method = ClassDiffusion(**{"steps": 3, "lr": 1e-3, **settings})
    return method.fit(backbone_of(pipe), instances or (BISCUIT,), seed=seed, on_progress=on_progress)


def deltas(edit: WeightEdit, pipe: Any) -> dict[str, Tensor]:
    weights = backbone_of(pipe).parameters(edit.changes.__contains__)
    return {name: change.of(weights[name].detach()) for name, change in edit.changes.items()}


def rows(edit: WeightEdit) -> dict[str, Tensor]:
    return {f"{token.text} {part}": row for token in edit.tokens for part, row in token.rows.items()}


def drawn(pipe: Any, prompts: list[str]) -> np.ndarray:
    return sample(
        pipe, prompts, list(range(len(prompts))), SamplingSettings(steps=2, guidance_scale=4.0), output="uint8"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_only_keys_values_and_the_new_word_move(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    backbone = backbone_of(pipe)
    before = {name: weight.clone() for name, weight in backbone.parameters(lambda _: True).items()}
    edit = learned(pipe)
    assert edit.changes.keys() == set(backbone.sites(reads="text"))
    assert all(delta.any() for delta in deltas(edit, pipe).values())
    assert set(rows(edit)) == {f"<biscuit> {part}" for part in backbone.tokenizers()}
    tables = {table_name(backbone, part) for part in backbone.tokenizers()}
    with edit.applied_to(pipe):
        inside = {name: weight.clone() for name, weight in backbone.parameters(lambda _: True).items()}
    for name, weight in before.items():
        if name in tables:
            assert torch.equal(inside[name][:-1], weight)  # not even weight decay moves a known word
        elif name not in edit.changes:
            assert torch.equal(inside[name], weight)
    after = backbone.parameters(lambda _: True)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_weight_of_zero_is_custom_diffusion_bit_for_bit() -> None:
    pipe = tiny.sd1()
    backbone = backbone_of(pipe)
    plain, other = learned(pipe, spl_weight=0.0), learned(pipe, spl_weight=1.0)
    method = ClassDiffusion(steps=3, lr=1e-3)
    tokens = method._tokens(backbone, [BISCUIT])
    table = table_name(backbone, "text_encoder")
    with tokens_added(pipe, tokens):
        alone = finetune(
            backbone,
            lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,
            method._reconstruction(backbone, [BISCUIT]),
            Optimisation(steps=3, lr=1e-3, weight_decay=0.01, clip_norm=1.0, last_rows={table: 1}),
        )
    [word] = moved_tokens(tokens, {"text_encoder": alone.pop(table)})
    assert torch.equal(word.rows["text_encoder"], rows(plain)["<biscuit> text_encoder"])
    assert all(torch.equal(change.of(torch.empty(0)), deltas(plain, pipe)[name]) for name, change in alone.items())
    assert not torch.equal(rows(plain)["<biscuit> text_encoder"], rows(other)["<biscuit> text_encoder"])


def test_the_same_seed_learns_the_same_and_another_another() -> None:
    pipe = tiny.sd1()
    torch.manual_seed(1)
    one = learned(pipe, seed=3)
    torch.manual_seed(2)
    same, other = learned(pipe, seed=3), learned(pipe, seed=4)
    assert all(torch.equal(delta, deltas(same, pipe)[name]) for name, delta in deltas(one, pipe).items())
    assert not all(torch.equal(delta, deltas(other, pipe)[name]) for name, delta in deltas(one, pipe).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_semantic_loss_has_a_gradient_in_the_word_tables_and_in_nothing_else(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    backbone = backbone_of(pipe)
    row = {part: torch.full((tiny.WIDTH,), 0.1) for part in backbone.tokenizers()}
    with tokens_added(pipe, [NewToken(text="<biscuit>", rows=row)]):
        ids = backbone.encode(["a photo of a <biscuit> dog", "a photo of a dog"]).ids
        features = phrase_features(backbone, ids)
        loss = sum((cosine_preservation(each[:1], each[1:]) for each in features), torch.zeros(()))
        loss.backward()
        denoiser = backbone.parameters(lambda name: name.startswith("unet."))
        assert all(weight.grad is None for weight in denoiser.values())
        used = set(ids[:1].flatten().tolist())
        for part in backbone.tokenizers():
            table = backbone.parameters({table_name(backbone, part)}.__contains__)[table_name(backbone, part)]
            assert table.grad is not None
            moved = set(table.grad.abs().sum(1).nonzero().flatten().tolist())
            assert len(table) - 1 in moved
            assert moved <= used  # the reference's phrase, which has the same words but the new one, gets none
        backbone.component("text_encoder").zero_grad()


def test_the_feature_reads_the_class_after_the_word_unless_pooled_as_the_published_code_does() -> None:
    pipe = tiny.sd1()
    backbone = backbone_of(pipe)
    with tokens_added(pipe, [NewToken(text="<new1>", rows={"text_encoder": torch.full((tiny.WIDTH,), 0.1)})]):
        ids = backbone.encode(["a photo of a <new1> dog", "a photo of a <new1> cat"]).ids
        right = phrase_features(backbone, ids)[0]
        official = phrase_features(backbone, ids, "official_argmax")[0]
    assert not torch.equal(right[0], right[1])
    assert torch.equal(official[0], official[1])
    with pytest.raises(InputError, match="two text encoders"):
        learned(tiny.sdxl(), spl_pooling="official_argmax")


@pytest.mark.parametrize("pooling", ["eos", "official_argmax", "published"])
def test_the_semantic_loss_and_its_gradient_are_those_of_the_paper_or_of_the_published_code(pooling: Any) -> None:
    """1 - cos of two pooled states; the code pools at the largest id, and overwrites V* after positions were added."""
    pipe = tiny.sd1()
    backbone, method = backbone_of(pipe), ClassDiffusion(spl_pooling=pooling)
    word = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(5)) * 0.05
    with tokens_added(pipe, [NewToken(text="<biscuit>", rows={"text_encoder": word})]):
        loss = method._semantic(backbone, [BISCUIT])(Untrained(), 0, torch.Generator())
        encoder, end = pipe.text_encoder, pipe.tokenizer.eos_token_id
        table = encoder.get_input_embeddings().weight
        [gradient] = torch.autograd.grad(loss, table)
        star = word.clone().requires_grad_()
        pooled = []
        for phrase in ("a photo of a <biscuit> dog", "a photo of a dog"):
            ids = pipe.tokenizer(phrase, return_tensors="pt").input_ids[0]
            rows = torch.cat([table.detach()[:-1], star[None]])[ids]
            placed = rows + encoder.embeddings.position_embedding.weight.detach()[: len(ids)]
            if pooling == "published":
                placed = torch.where((ids == len(table) - 1)[:, None], star, placed)
            place = int((ids == end).int().argmax() if pooling == "eos" else ids.argmax())
            pooled.append(clip_states(encoder, placed)[place])
    expected = 1 - pooled[0] @ pooled[1].detach() / pooled[0].norm() / pooled[1].norm().detach()
    torch.testing.assert_close(loss, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(gradient[-1], torch.autograd.grad(expected, star)[0], rtol=1e-4, atol=2e-6)
    assert loss.item() > 1e-3


class Untrained(Student):
    """A student that is still the original."""

    def __init__(self) -> None: ...

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


def test_the_semantic_loss_alone_falls_all_the_way() -> None:
    losses: list[float] = []
    learned(
        tiny.sd1(),
        steps=100,
        spl_weight=1e6,  # the clipped gradient is then that of the semantic loss
        on_progress=lambda step: losses.append(step.parts[1] / 1e6),
        **SPL_ALONE,
    )
    smooth = np.convolve(losses, np.ones(20) / 20, "valid")
    assert smooth[-1] < 0.2 * smooth[0]
    assert (np.diff(smooth) < 1e-4).all()


def test_two_instances_are_learned_together_and_share_the_mean_of_the_semantic_loss() -> None:
    pipe = tiny.sd1()
    steps: list[Progress] = []
    edit = learned(pipe, BISCUIT, RUSTY, on_progress=steps.append)
    alone: list[Progress] = []
    learned(pipe, BISCUIT, on_progress=alone.append)
    assert [token.text for token in edit.tokens] == ["<biscuit>", "<rusty>"]
    assert steps[0].parts[1] == pytest.approx(alone[0].parts[1], rel=1e-5)  # both words start alike
    with edit.applied_to(pipe):
        assert backbone_of(pipe).encode(["a <biscuit> dog and a <rusty> dog"]).word_positions(0, "<rusty>")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_it_learns_its_pictures(prediction_type: str) -> None:
    pipe = tiny.sd1(prediction_type=prediction_type)
    settings: dict[str, Any] = {"batch_size": 8, "spl_weight": 0.0, "augment": False}
    edit = learned(pipe, steps=40, lr=1e-2, **settings)

    def losses() -> list[float]:
        found: list[float] = []
        learned(
            pipe, steps=12, lr=1e-12, weight_decay=0.0, seed=9, on_progress=lambda s: found.append(s.loss), **settings
        )
        return found

    before = losses()
    with replace(edit, tokens=()).applied_to(pipe):
        after = losses()  # on the same draws
    assert np.mean(after) < 0.98 * np.mean(before)


def test_patches_of_a_rank_train_as_lora_and_the_word_in_full() -> None:
    pipe = tiny.sd1()
    edit = learned(pipe, rank=2)
    assert all(isinstance(change, LowRankChange) for change in edit.changes.values())
    assert edit.tokens[0].rows["text_encoder"].shape == (tiny.WIDTH,)


def test_the_masked_loss_counts_only_what_is_inside_per_picture() -> None:
    predicted, wanted = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0], mask[1] = 1.0, 1.0
    wanted[0, :, 1, 1] = 100.0  # outside
    assert masked_reconstruction(predicted, wanted, mask) == pytest.approx(3.0)  # once for each channel


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_loads_in_diffusers_own_formats(family: str, tmp_path: Path) -> None:
    pipe = tiny.FAMILIES[family]()
    prompts = ["a photo of a <biscuit> dog", "a dog"]
    for rank, name in ((None, CUSTOM_DIFFUSION_FILE), (2, LORA_FILE)):
        folder = tmp_path / name
        folder.mkdir()
        edit = learned(pipe, rank=rank, steps=2, lr=3e-2)
        with edit.applied_to(pipe):
            wanted = drawn(pipe, prompts)
        before = drawn(pipe, prompts[1:])
        assert not np.array_equal(before, wanted[1:])
        files = write_formats(edit, pipe, folder)
        assert folder / name in files
        fresh = tiny.FAMILIES[family]()
        fresh.load_textual_inversion(folder / "biscuit.safetensors")
        if family == "sdxl":
            fresh.load_textual_inversion(
                folder / "biscuit-2.safetensors", text_encoder=fresh.text_encoder_2, tokenizer=fresh.tokenizer_2
            )
        if rank is None:
            # Without _pipeline diffusers 0.42 reads the file and sets nothing.
            fresh.unet.load_attn_procs(folder, weight_name=name, use_safetensors=True, _pipeline=fresh)
        else:
            fresh.load_lora_weights(folder, weight_name=name)
        found = drawn(fresh, prompts)
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 2


def test_custom_diffusions_format_is_refused_for_what_it_cannot_say() -> None:
    pipe = tiny.sd1()
    edit = learned(pipe)
    name, change = next(iter(edit.changes.items()))
    with pytest.raises(InputError, match="expected changes of all keys and values"):
        custom_diffusion(WeightEdit(changes={name: change}, metadata=edit.metadata), pipe)


def test_a_saved_edit_draws_the_same_picture(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    edit = learned(pipe, lr=3e-2)
    loaded = WeightEdit.load(edit.save(tmp_path / "edit.safetensors"))
    with edit.applied_to(pipe):
        one = drawn(pipe, ["a <biscuit> dog"])
    with loaded.applied_to(pipe):
        assert np.array_equal(drawn(pipe, ["a <biscuit> dog"]), one)
    merged = tiny.sd1()
    loaded.merge_into(merged)
    merged.save_pretrained(tmp_path / "model")
    ordinary = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert np.array_equal(drawn(ordinary, ["a <biscuit> dog"]), one)


def test_what_cannot_be_learned_is_said_in_a_line() -> None:
    pipe = tiny.sd1()
    with pytest.raises(InputError, match="expected at least 2, got 1"):
        Instance(token="<x>", class_word="dog", images=PICTURES[:1])
    with pytest.raises(InputError, match=r"class: expected a word of one sense, got 'bat'.*fruit bat"):
        Instance(token="<x>", class_word="bat", images=PICTURES)
    with pytest.raises(InputError, match="a more specific word, got 'Thing'"):
        Instance(token="<x>", class_word="Thing", images=PICTURES)
    with pytest.raises(InputError, match="class: expected the class of what the images show"):
        Instance(token="<x>", class_word=" ", images=PICTURES)
    with pytest.raises(InputError, match="instances with a word each"):
        learned(pipe, BISCUIT, BISCUIT)
    with pytest.raises(InputError, match="new to the model"):
        learned(pipe, Instance(token="a", class_word="dog", images=PICTURES))


def test_forgetting_gives_the_weights_back_and_turns_the_word_into_its_class() -> None:
    pipe = tiny.sd1()
    backbone = backbone_of(pipe)
    edit = learned(pipe, lr=3e-2, spl_weight=0.0)
    losses: list[float] = []
    gone = Forgetting(steps=150, lr=1e-2).fit(backbone, edit, "<biscuit>", on_progress=lambda s: losses.append(s.loss))
    assert not gone.changes
    assert losses[-1] < 0.7 * losses[0]
    texts = ["a photo of a <biscuit> dog", "a photo of a dog"]
    with gone.applied_to(pipe):
        features = phrase_features(backbone, backbone.encode(texts).ids)[0]
    with edit.applied_to(pipe):
        before = phrase_features(backbone, backbone.encode(texts).ids)[0]
    assert cosine_preservation(features[:1], features[1:]) < cosine_preservation(before[:1], before[1:])


def test_forgetting_one_of_two_keeps_the_other_as_it_was() -> None:
    pipe = tiny.sd1()
    edit = learned(pipe, BISCUIT, RUSTY)
    gone = Forgetting(steps=3).fit(backbone_of(pipe), edit, "<biscuit>")
    assert gone.changes.keys() == edit.changes.keys()
    assert torch.equal(rows(gone)["<rusty> text_encoder"], rows(edit)["<rusty> text_encoder"])
    assert not torch.equal(rows(gone)["<biscuit> text_encoder"], rows(edit)["<biscuit> text_encoder"])
    with pytest.raises(UnknownNameError, match="learned word"):
        Forgetting(steps=1).fit(backbone_of(pipe), edit, "<felix>")


def test_a_dense_change_is_exactly_what_the_training_did() -> None:
    pipe = tiny.sd1()
    edit = learned(pipe, steps=0)
    assert all(isinstance(change, DenseChange) and not change.delta.any() for change in edit.changes.values())
    start = ClassDiffusion()._tokens(backbone_of(pipe), [BISCUIT])[0].rows["text_encoder"]
    assert torch.equal(edit.tokens[0].rows["text_encoder"], start)
