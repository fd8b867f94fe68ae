"""Edits: applied and undone bit for bit, scaled, composed, saved, loaded, and refused on another base."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.closed_form.joint import joined_rows
from erasure.closed_form.problem import TextMap
from erasure.closed_form.solve import solve
from erasure.concept import Concept
from erasure.edits import Change, DenseChange, Edit, EditMetadata, LowRankChange, MapChange, SumChange, WeightEdit
from erasure.erasers.uce import UCE
from erasure.errors import BaseMismatchError, ErasureError, InputError
from erasure.pipelines.export.kohya import kohya_tensors
from erasure.training.context import FitContext
from tests import tiny

PIPE = tiny.sd1()
BACKBONE = backbone_of(PIPE)
PROJECTIONS = list(BACKBONE.sites(reads="text"))
CONV = "unet.conv_in.weight"


def snapshot(pipe: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in backbone_of(pipe).parameters(lambda _: True).items()}


def unequal(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """No test may leave the shared pipeline changed."""
    before = snapshot(PIPE)
    yield
    assert not unequal(before, snapshot(PIPE))


def made(changes: dict[str, Change], **metadata: Any) -> WeightEdit:
    made_by = EditMetadata.of("test", {"reg": 0.5}, BACKBONE, [Concept(target="cat")], seed=metadata.get("seed", 0))
    return WeightEdit(changes=changes, metadata=made_by)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_map(rank: int | None = 3, seed: int = 0) -> MapChange:
    if rank is None:
        return MapChange(map=TextMap(u=noise(tiny.WIDTH, tiny.WIDTH, seed=seed).double()))
    u, v = noise(2, tiny.WIDTH, rank, seed=seed).double()
    return MapChange(map=TextMap(u=u, v=v))


def of_every_kind(seed: int = 0) -> WeightEdit:
    low_rank = LowRankChange(up=noise(*(len(weight(PROJECTIONS[1])), 2), seed=seed), down=noise(2, tiny.WIDTH))
    return made(
        {
            PROJECTIONS[0]: a_map(seed=seed),
            PROJECTIONS[1]: low_rank,
            PROJECTIONS[2]: SumChange(parts=(a_map(None, seed), low_rank)),
            PROJECTIONS[3]: a_map(seed=seed),
            CONV: DenseChange(delta=noise(*weight(CONV).shape, seed=seed)),
        }
    )


def weight(name: str) -> Tensor:
    return BACKBONE.parameters(lambda other: other == name)[name].detach()


def same(one: WeightEdit, other: WeightEdit) -> bool:
    """Whether two edits change a model alike to the last bit, and say the same of themselves."""
    alike = one.changes.keys() == other.changes.keys() and one.metadata == other.metadata
    return alike and all(
        torch.equal(change.of(weight(name)), other.changes[name].of(weight(name)))
        for name, change in one.changes.items()
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_undo_is_bit_exact(family: str, dtype: torch.dtype) -> None:
    pipe = tiny.FAMILIES[family]()
    edit = UCE(rows="last-subject").fit(
        [Concept(target="cat", preserve=("dog",))], FitContext(backbone=backbone_of(pipe))
    )
    pipe.to(dtype)
    before = snapshot(pipe)
    pointers = {name: value.data_ptr() for name, value in backbone_of(pipe).parameters(lambda _: True).items()}
    with edit.applied_to(pipe, check=dtype != torch.bfloat16) as inside:
        assert inside is pipe
        assert unequal(before, snapshot(pipe)) == set(edit.changes)
    assert not unequal(before, snapshot(pipe))
    after = {name: value.data_ptr() for name, value in backbone_of(pipe).parameters(lambda _: True).items()}
    assert pointers == after


def test_an_error_inside_the_with_still_undoes() -> None:
    before = snapshot(PIPE)
    with pytest.raises(KeyError), of_every_kind().applied_to(PIPE):
        raise KeyError("stop")
    assert not unequal(before, snapshot(PIPE))


def test_a_switch_shows_what_applying_shows_and_undoes_it_bit_for_bit_as_often_as_wanted() -> None:
    before, edit = snapshot(PIPE), of_every_kind()
    with edit.applied_to(PIPE):
        applied = snapshot(PIPE)
    with edit.switched(PIPE) as switch:
        assert not switch.on
        assert not unequal(before, snapshot(PIPE))
        for on in (True, True, False, False, True, False, True):
            switch.turn(on=on)
            assert switch.on is on
            assert not unequal(applied if on else before, snapshot(PIPE))
    assert not switch.on
    assert not unequal(before, snapshot(PIPE))


def test_an_error_while_a_switch_is_on_still_undoes() -> None:
    before = snapshot(PIPE)

    def turned_on_and_failing() -> None:
        with of_every_kind().switched(PIPE) as switch:
            switch.turn(on=True)
            assert unequal(before, snapshot(PIPE))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        turned_on_and_failing()
    assert not unequal(before, snapshot(PIPE))


def test_a_switch_computes_nothing_when_it_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    with of_every_kind().switched(PIPE) as switch:
        for kind in (DenseChange, LowRankChange, MapChange, SumChange):
            monkeypatch.setattr(kind, "of", lambda *_: pytest.fail("computed again"))
        switch.turn(on=True)
        switch.turn(on=False)


def test_applying_leaves_a_change_as_it_was() -> None:
    """The sum is made in place: in float64 a dense change is handed out itself, not a copy of it."""
    delta = torch.ones_like(weight(CONV), dtype=torch.float64)
    with made({CONV: DenseChange(delta=delta)}).applied_to(PIPE):
        pass
    assert bool((delta == 1).all())


def test_a_move_inside_the_with_is_kept_and_the_weights_are_undone() -> None:
    pipe = tiny.sd1()
    before = snapshot(pipe)
    with of_every_kind().applied_to(pipe):
        pipe.to(torch.float64)
    assert pipe.unet.dtype == torch.float64
    assert not unequal({name: value.double() for name, value in before.items()}, snapshot(pipe))


def test_every_kind_of_change_adds_what_it_says() -> None:
    edit = of_every_kind()
    with edit.applied_to(PIPE):
        edited = {name: weight(name).clone() for name in edit.changes}
    dense, low_rank, both = (edit.changes[name] for name in (CONV, PROJECTIONS[1], PROJECTIONS[2]))
    assert isinstance(dense, DenseChange)
    assert isinstance(low_rank, LowRankChange)
    assert isinstance(both, SumChange)
    torch.testing.assert_close(edited[CONV], weight(CONV) + dense.delta)
    torch.testing.assert_close(edited[PROJECTIONS[1]], weight(PROJECTIONS[1]) + low_rank.up @ low_rank.down)
    old = weight(PROJECTIONS[2])
    full = a_map(None).map.matrix().float()
    torch.testing.assert_close(edited[PROJECTIONS[2]], old @ full + low_rank.up @ low_rank.down, rtol=1e-4, atol=1e-5)


def test_merging_leaves_what_applying_shows() -> None:
    pipe, edit = tiny.sd1(), of_every_kind()
    with edit.applied_to(pipe):
        shown = snapshot(pipe)
    edit.merge_into(pipe)
    assert not unequal(shown, snapshot(pipe))


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(-2, 2))
def test_a_scaled_edit_changes_in_proportion(factor: float) -> None:
    edit = of_every_kind()
    for name, change in edit.scaled(factor).changes.items():
        expected = factor * edit.changes[name].of(weight(name))  # rounds to float32 before scaling, not after
        torch.testing.assert_close(change.of(weight(name)), expected, rtol=1e-5, atol=1e-6)


def test_scaling_by_zero_changes_nothing_and_by_one_keeps_the_rows() -> None:
    before = snapshot(PIPE)
    edit = UCE(rows="last-subject").fit([Concept(target="cat")], FitContext(backbone=BACKBONE))
    with edit.scaled(0.0).applied_to(PIPE):
        assert not unequal(before, snapshot(PIPE))
    assert edit.scaled(1.0).rows is edit.rows
    assert edit.scaled(0.5).rows is None


def test_composition_adds_changes_of_one_base() -> None:
    one, other = of_every_kind(0), of_every_kind(1)
    composed = WeightEdit.compose([one, other])
    for name, change in composed.changes.items():
        expected = one.changes[name].of(weight(name)) + other.changes[name].of(weight(name))
        torch.testing.assert_close(change.of(weight(name)), expected)
    assert composed.metadata.method == "composed"
    assert composed.metadata.parts == (one.metadata, other.metadata)
    with pytest.raises(InputError, match="expected at least one"):
        WeightEdit.compose([])


def test_composing_edits_of_two_models_names_both() -> None:
    one = UCE(rows="last-subject").fit([Concept(target="cat")], FitContext(backbone=BACKBONE))
    other_base = backbone_of(tiny.sd1(seed=1))
    other = UCE(rows="last-subject").fit([Concept(target="dog")], FitContext(backbone=other_base))
    for joining in (WeightEdit.compose, WeightEdit.joint):
        with pytest.raises(BaseMismatchError) as caught:
            joining([one, other])
        assert BACKBONE.fingerprint()[:12] in str(caught.value)
        assert other_base.fingerprint()[:12] in str(caught.value)


@pytest.mark.parametrize("rows", ["last-subject", "templates"])
def test_jointly_solved_removals_equal_removal_at_once_in_any_order(rows: Any) -> None:
    eraser = UCE(rows=rows)
    concepts = [
        Concept(target="cat", preserve=("dog", "bird")),
        Concept(target="dog", anchor="animal", preserve=("cat",)),
        Concept(target="gun", aliases=("pistol",)),
    ]
    edits = [eraser.fit([concept], FitContext(backbone=BACKBONE)) for concept in concepts]
    at_once = eraser.fit(concepts, FitContext(backbone=BACKBONE))
    for joined in (WeightEdit.joint(edits), WeightEdit.joint(edits[::-1]), WeightEdit.joint([at_once])):
        for name in PROJECTIONS:
            assert torch.equal(joined.changes[name].of(weight(name)), at_once.changes[name].of(weight(name)))


def test_trained_changes_follow_the_joint_solve() -> None:
    solved = UCE(rows="last-subject").fit([Concept(target="cat")], FitContext(backbone=BACKBONE))
    trained = made({PROJECTIONS[0]: DenseChange(delta=noise(*weight(PROJECTIONS[0]).shape))})
    joint = WeightEdit.joint([trained, solved])
    expected = solved.changes[PROJECTIONS[0]].of(weight(PROJECTIONS[0])) + noise(*weight(PROJECTIONS[0]).shape).double()
    assert torch.equal(joint.changes[PROJECTIONS[0]].of(weight(PROJECTIONS[0])), expected)
    assert joint.changes.keys() == set(PROJECTIONS)


def test_edits_of_different_layers_are_joined_layer_by_layer() -> None:
    eraser = UCE(rows="last-subject")
    one, other = (eraser.fit([Concept(target=target)], FitContext(backbone=BACKBONE)) for target in ("cat", "dog"))
    keys = {name: change for name, change in other.changes.items() if "to_k" in name}
    joint = WeightEdit.joint([one, WeightEdit(changes=keys, metadata=other.metadata, rows=other.rows)])
    both = eraser.fit([Concept(target="cat"), Concept(target="dog")], FitContext(backbone=BACKBONE))
    for name in PROJECTIONS:
        expected = both if "to_k" in name else one
        assert torch.equal(joint.changes[name].of(weight(name)), expected.changes[name].of(weight(name)))


@pytest.mark.parametrize("rows", ["last-subject", "templates", None])
def test_save_then_load_is_equal(tmp_path: Path, rows: Any) -> None:
    concepts = [Concept(target="cat", preserve=("dog",), aliases=("kitty",)), Concept(target="Neon", kind="style")]
    edit = of_every_kind() if rows is None else UCE(rows=rows).fit(concepts, FitContext(backbone=BACKBONE, seed=3))
    loaded = WeightEdit.load(edit.save(tmp_path / "edit.safetensors"))
    assert same(loaded, edit)
    assert [file.name for file in tmp_path.iterdir()] == ["edit.safetensors"]
    if edit.rows is not None:
        assert loaded.rows is not None
        assert loaded.rows["text"].sites == edit.rows["text"].sites
        assert torch.equal(loaded.rows["text"].targets, edit.rows["text"].targets)
        assert same(WeightEdit.joint([loaded]), WeightEdit.joint([edit]))


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_factors_of_any_layout_survive_the_disk_bit_for_bit(tmp_path: Path, layout: str) -> None:
    def laid_out(rows: int, columns: int, seed: int) -> Tensor:
        if layout == "transposed":
            return noise(columns, rows, seed=seed).T
        return noise(rows, 2 * columns, seed=seed)[:, ::2]

    size = len(weight(PROJECTIONS[1]))
    factors = [laid_out(tiny.WIDTH, 7, seed).double() for seed in (0, 1)]
    edit = made(
        {
            PROJECTIONS[0]: MapChange(map=TextMap(u=factors[0], v=factors[1])),
            PROJECTIONS[1]: LowRankChange(up=laid_out(size, 3, 2), down=laid_out(3, tiny.WIDTH, 3)),
            PROJECTIONS[2]: MapChange(map=TextMap(u=laid_out(tiny.WIDTH, tiny.WIDTH, 4).double())),
        }
    )
    loaded = WeightEdit.load(edit.save(tmp_path / "edit"))
    assert same(loaded, edit)
    assert same(WeightEdit.load(loaded.save(tmp_path / "again")), edit)


def test_rows_apart_from_the_file_are_found_beside_its_folder_and_nowhere_else(tmp_path: Path) -> None:
    edit = UCE().fit([Concept(target="cat", preserve=("dog",))], FitContext(backbone=BACKBONE))
    (tmp_path / "edits").mkdir()
    alone = edit.save(tmp_path / "alone.safetensors")
    path = edit.save(tmp_path / "edits" / "cat.safetensors", shared=tmp_path / "rows")
    assert path.stat().st_size < 0.5 * alone.stat().st_size
    for loaded in (WeightEdit.load(path), WeightEdit.load(alone), WeightEdit.load(path, shared=tmp_path / "rows")):
        assert same(loaded, edit)
        assert same(WeightEdit.joint([loaded]), WeightEdit.joint([edit]))
    moved = path.rename(tmp_path / "cat.safetensors")
    with pytest.raises(InputError, match="save it alone to take it elsewhere") as caught:
        WeightEdit.load(moved)
    assert "\n" not in str(caught.value)


def test_a_file_of_the_first_format_is_read(tmp_path: Path) -> None:
    edit = UCE(rows="last-subject", strength=1.0).fit(
        [Concept(target="cat", preserve=("dog",))], FitContext(backbone=BACKBONE)
    )
    assert edit.rows is not None
    rows = edit.rows["text"]
    columns = {item.name: getattr(rows, item.name) for item in fields(rows) if item.name not in ("strengths", "space")}
    described = {
        "changes": {name: {"kind": "map", "u": "u", "v": "v"} for name in edit.changes},
        "metadata": edit.metadata.as_json(),
        "rows": {name: value for name, value in columns.items() if not isinstance(value, Tensor)},
    }
    found = solve(joined_rows([rows]))
    tensors = {f"rows.{name}": value for name, value in columns.items() if isinstance(value, Tensor)}
    save_file(
        {**tensors, "u": found.u, "v": found.v.contiguous()},
        tmp_path / "first",
        metadata={"format": "erasure-edit/1", "edit": json.dumps(described)},
    )
    loaded = WeightEdit.load(tmp_path / "first")
    assert same(loaded, edit)
    assert same(WeightEdit.joint([loaded]), WeightEdit.joint([edit]))


def test_a_map_that_the_rows_give_is_not_written_and_not_solved_for_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = UCE(rows="last-subject").fit([Concept(target="cat"), Concept(target="dog")], FitContext(backbone=BACKBONE))
    with safe_open(edit.save(tmp_path / "edit"), framework="pt") as file:
        assert not [name for name in file.keys() if not name.startswith("rows.")]  # noqa: SIM118 - not a mapping
    monkeypatch.setattr("erasure.edits.changes.solve", None)
    loaded = WeightEdit.load(tmp_path / "edit")
    assert loaded.closed_form
    again = WeightEdit.load(loaded.save(tmp_path / "again"))
    monkeypatch.undo()
    assert same(again, edit)
    half = WeightEdit.load(edit.scaled(0.5).save(tmp_path / "half"))  # no rows say this one
    assert same(half, edit.scaled(0.5))
    composed = WeightEdit.compose([edit, half])  # once: it says when it was made
    assert same(WeightEdit.load(composed.save(tmp_path / "summed")), composed)


def test_a_shared_map_is_written_once(tmp_path: Path) -> None:
    one, many = made({PROJECTIONS[0]: a_map()}), made(dict.fromkeys(PROJECTIONS, a_map()))
    sizes = [made_edit.save(tmp_path / f"{at}").stat().st_size for at, made_edit in enumerate((one, many))]
    assert sizes[1] - sizes[0] < 300 * len(PROJECTIONS)  # a name each; the map again would be over 1,000
    loaded = WeightEdit.load(tmp_path / "1")
    assert len({id(change) for change in loaded.changes.values()}) == 1


def test_a_failed_save_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = of_every_kind().save(tmp_path / "edit.safetensors")
    content = path.read_bytes()
    with pytest.raises(InputError, match="expected a place that can be written"):
        of_every_kind().save(tmp_path / "missing" / "edit.safetensors")
    assert path.read_bytes() == content


def test_what_is_no_edit_is_refused_in_one_line(tmp_path: Path) -> None:
    text, other, missing = tmp_path / "text", tmp_path / "other", tmp_path / "missing"
    text.write_text("hello")
    save_file({"a": torch.zeros(1)}, other)
    for path, message in ((text, "safetensors file"), (other, "expected an edit"), (missing, "path of a file")):
        with pytest.raises(InputError, match=message) as caught:
            WeightEdit.load(path)
        assert "\n" not in str(caught.value)


def test_a_header_holds_the_metadata_as_json(tmp_path: Path) -> None:
    path = of_every_kind().save(tmp_path / "edit.safetensors")
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert json.loads(header["edit"])["metadata"]["method"] == "test"


def test_another_base_is_refused_and_a_half_precision_copy_is_not() -> None:
    edit = of_every_kind()
    with pytest.raises(BaseMismatchError, match="expected the model that it was made for") as caught:
        edit.check_base(tiny.sd1(seed=1))
    assert "\n" not in str(caught.value)
    edit.check_base(tiny.sd1().to(torch.float16))
    with edit.applied_to(PIPE), pytest.raises(BaseMismatchError):
        edit.check_base(PIPE)


def test_changes_that_do_not_fit_are_refused_before_anything_changes() -> None:
    before = snapshot(PIPE)
    unknown = made({PROJECTIONS[0]: a_map(), "unet.nothing.weight": a_map()})
    misfit = made({PROJECTIONS[0]: a_map(), CONV: DenseChange(delta=torch.zeros(5, 4, 3))})
    for edit, message in ((unknown, "with the parameter 'unet.nothing.weight'"), (misfit, CONV)):
        with pytest.raises(ErasureError, match=message) as caught:
            edit.merge_into(PIPE)
        assert "\n" not in str(caught.value)
    assert not unequal(before, snapshot(PIPE))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_low_rank_edit_is_exact_as_a_lora_that_diffusers_loads(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    backbone = backbone_of(pipe)
    edit = UCE(rows="last-subject").fit(
        [Concept(target="cat"), Concept(target="dog", anchor="bird")], FitContext(backbone=backbone)
    )
    lora = edit.as_lora(pipe)
    assert lora.relative_error < 1e-9
    states = backbone.encode(["a photo of a cat"])
    latents = noise(1, 4, 8, 8)
    with torch.no_grad():
        before = backbone.predict(latents, torch.tensor(500), states)
        with edit.applied_to(pipe):
            expected = backbone.predict(latents, torch.tensor(500), states)
        pipe.load_lora_weights(dict(lora.state_dict))
        found = backbone_of(pipe).predict(latents, torch.tensor(500), states)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - before).abs().max() > 1e-3


def test_a_lora_cut_in_rank_reports_its_error() -> None:
    edit = made({PROJECTIONS[0]: a_map(None)})
    delta = edit.changes[PROJECTIONS[0]].of(weight(PROJECTIONS[0]))
    values = torch.linalg.svdvals(delta)
    expected = (values[3:].square().sum() / values.square().sum()).sqrt().item()
    assert edit.as_lora(PIPE, rank=3).relative_error == pytest.approx(expected)


@pytest.mark.parametrize("kohya", [False, True])
def test_a_convolution_is_exact_as_a_lora_that_diffusers_loads(kohya: bool) -> None:
    pipe, edit = tiny.sd1(), of_every_kind()
    lora = edit.as_lora(pipe, rank=1000)
    assert CONV in edit.changes
    assert lora.left_out == ()
    assert lora.relative_error < 1e-9
    with edit.applied_to(pipe):
        expected = predicted(pipe)
    pipe.load_lora_weights(kohya_tensors(lora.state_dict, pipe) if kohya else dict(lora.state_dict))
    torch.testing.assert_close(predicted(pipe), expected, rtol=1e-4, atol=1e-4)


def test_what_a_lora_has_no_place_for_counts_as_missed() -> None:
    bias, embedding = "unet.conv_in.bias", "text_encoder.embeddings.token_embedding.weight"
    up, down = noise(len(weight(PROJECTIONS[0])), 1), noise(1, tiny.WIDTH)
    others = {name: DenseChange(delta=noise(*weight(name).shape)) for name in (bias, embedding)}
    lora = made({PROJECTIONS[0]: LowRankChange(up=up, down=down), **others}).as_lora(PIPE)
    assert lora.left_out == (bias, embedding)
    missed = sum(change.delta.square().sum().item() for change in others.values())
    expected = (missed / (missed + (up @ down).square().sum().item())) ** 0.5
    assert lora.relative_error == pytest.approx(expected, rel=1e-5)
    with pytest.raises(
        InputError, match=r"expected a change of linear or convolutional layers, got unet\.conv_in\.bias"
    ):
        made({bias: others[bias]}).as_lora(PIPE)


def predicted(pipe: Any) -> Tensor:
    backbone = backbone_of(pipe)
    with torch.no_grad():
        return backbone.predict(noise(1, 4, 8, 8), torch.tensor(500), backbone.encode(["a photo of a cat"]))


def test_a_folder_of_an_edit_is_read_back_by_folder_and_by_file(tmp_path: Path) -> None:
    edit = of_every_kind()
    folder = edit.save_pretrained(tmp_path / "new" / "folder")
    assert [path.name for path in folder.iterdir()] == ["edit.safetensors"]
    for source in (folder, str(folder), folder / "edit.safetensors"):
        assert same(WeightEdit.from_pretrained(source), edit)
        assert isinstance(Edit.from_pretrained(source), WeightEdit)
    for source in (tmp_path / "missing", "no id at all"):
        with pytest.raises(InputError, match="expected a folder, a file or a Hub id") as caught:
            Edit.from_pretrained(source)
        assert "\n" not in str(caught.value)
