"""The image store: one picture a row, whatever was interrupted, and never a mix."""

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from erasure.errors import InputError
from erasure.eval.images.manifest import MANIFEST, Manifest
from erasure.eval.images.pipeline_digest import pipeline_digest
from erasure.eval.images.store import ImageStore, check_paired, generate
from erasure.progress import OnProgress, Progress
from erasure.sampling import SamplingSettings, sample
from tests import tiny
from tests.eval.many_processes import PROMPTS, SAMPLER, SEEDS, rows_made
from tests.processes import in_two_processes


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def full(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """A store that is only read."""
    return generate(pipe, PROMPTS, SEEDS, tmp_path_factory.mktemp("store") / "original", sampler=SAMPLER)


def pixels(store: ImageStore) -> np.ndarray:
    return np.stack([np.asarray(store[row]) for row in range(len(store))])


def killed_after(images: int) -> OnProgress:
    """Return a receiver that stops a run as a signal would, once so many images are made."""

    def on_progress(progress: Progress) -> None:
        if progress.done >= images:
            raise KeyboardInterrupt

    return on_progress


def increments(reports: Sequence[Progress]) -> list[int]:
    """Return the number of new images of each report."""
    return [after - before for before, after in itertools.pairwise([0, *(report.done for report in reports)])]


def test_every_row_holds_the_picture_of_its_prompt_and_seed(pipe: Any, full: ImageStore) -> None:
    expected = [
        sample(pipe, [p], [s], SamplingSettings(steps=2, guidance_scale=4.0))[0]
        for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    found = pixels(full).astype(int)
    # In batches of two the last bits differ from those of one, which may round to the next of 256 levels.
    assert np.abs(found - np.stack([np.asarray(image) for image in expected])).max() <= 1
    assert len({picture.tobytes() for picture in found}) == len(PROMPTS)  # a row more or less is not within that


def test_an_image_with_damaged_pixels_is_named(full: ImageStore, tmp_path: Path) -> None:
    shutil.copytree(full.folder, tmp_path / "copy")
    store = ImageStore.open(tmp_path / "copy")
    content = bytearray(store.path(0).read_bytes())
    start = content.index(b"IDAT") + 8
    content[start : start + 40] = bytes(40)
    store.path(0).write_bytes(content)
    assert store.holds(0)
    expected = rf"^{re.escape(str(store.path(0)))}: expected an image, got a damaged file .*Delete it, and sample again"
    with pytest.raises(InputError, match=expected):
        store[0]


def test_the_manifest_says_what_the_pictures_are(pipe: Any, full: ImageStore) -> None:
    written = json.loads((full.folder / MANIFEST).read_text(encoding="utf-8"))
    assert [(row["prompt"], row["seed"]) for row in written["images"]] == list(zip(PROMPTS, SEEDS, strict=True))
    assert written["images"][0]["seed"] == 0
    assert written["scheduler"]["name"] == "DDIMScheduler"
    assert written["scheduler"]["beta_end"] == 0.012
    assert (written["steps"], written["guidance_scale"], written["precision"]) == (2, 4.0, "float32")
    assert written["model"] == Manifest.of(pipe, PROMPTS, SEEDS, SAMPLER).model
    assert {"versions", "device", "threads", "batch_size", "processes"} == written["made_with"].keys()
    assert ImageStore.open(full.folder) == full
    assert ImageStore.open(full.folder).manifest.id == full.manifest.id == written["id"]


def test_a_killed_run_goes_on_without_redoing_or_skipping(pipe: Any, full: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(pipe, PROMPTS, SEEDS, tmp_path, sampler=SAMPLER, on_progress=killed_after(4))
    stopped = ImageStore.open(tmp_path)
    missing = stopped.missing()
    kept = {row: stopped.path(row).stat().st_mtime_ns for row in range(len(stopped)) if row not in missing}
    assert 0 < len(kept) < len(stopped)
    (tmp_path / ".000001-a-dog-1.png.deadbeef.tmp").write_bytes(b"a write that was killed")
    reports: list[Progress] = []
    resumed = generate(pipe, PROMPTS, SEEDS, tmp_path, sampler=SAMPLER, on_progress=reports.append)
    assert reports[0].done == len(kept)  # a bar goes on where it was
    assert reports[-1].done == reports[-1].total == len(resumed)
    assert {row: resumed.path(row).stat().st_mtime_ns for row in kept} == kept
    assert np.array_equal(pixels(resumed), pixels(full))  # batches are those of a run without a break: to the last bit
    again: list[Progress] = []
    generate(pipe, PROMPTS, SEEDS, tmp_path, sampler=SAMPLER, on_progress=again.append)
    assert increments(again) == [len(resumed)]


def test_one_lost_and_one_cut_file_are_made_again(pipe: Any, full: ImageStore, tmp_path: Path) -> None:
    store = generate(pipe, PROMPTS, SEEDS, tmp_path, sampler=SAMPLER)
    store.path(3).unlink()
    whole = store.path(5).read_bytes()
    store.path(5).write_bytes(whole[: len(whole) // 2])
    assert store.missing() == [3, 5]
    with pytest.raises(InputError, match="expected an image, got none that is whole"):
        store[5]
    reports: list[Progress] = []
    store = generate(pipe, PROMPTS, SEEDS, tmp_path, sampler=SAMPLER, on_progress=reports.append)
    assert increments(reports) == [len(store) - 2, 1, 1]  # they are of two batches
    assert np.abs(pixels(store).astype(int) - pixels(full)).max() <= 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompts": ["a cat", "a dog", "a fox", *PROMPTS[3:]]}, "row 2 .'Null', 2. against .'a fox', 2."),
        ({"seeds": [7, *SEEDS[1:]]}, "row 0 .'a cat', 0. against .'a cat', 7."),
        ({"prompts": PROMPTS[:3], "seeds": SEEDS[:3]}, "7 images against 3"),
        ({"sampler": SamplingSettings(steps=3, guidance_scale=4.0)}, "steps 2 against 3"),
        ({"sampler": SamplingSettings(steps=2, guidance_scale=5.0)}, "guidance_scale 4.0 against 5.0"),
        (
            {"sampler": SamplingSettings(steps=2, guidance_scale=4.0, negative_prompt="a cat")},
            "negative_prompt '' against",
        ),
        ({"edit": "001-cat"}, "edit '' against '001-cat'"),
    ],
)
def test_a_manifest_of_something_else_is_an_error(
    pipe: Any, full: ImageStore, change: dict[str, Any], named: str
) -> None:
    asked = {"prompts": PROMPTS, "seeds": SEEDS, "sampler": SAMPLER, **change}
    with pytest.raises(InputError, match=named):
        generate(pipe, folder=full.folder, **asked)


def test_another_model_scheduler_or_precision_is_an_error(full: ImageStore) -> None:
    other = tiny.sd1(seed=1)
    with pytest.raises(InputError, match="got model '"):
        generate(other, PROMPTS, SEEDS, full.folder, sampler=SAMPLER)
    same = tiny.sd1()
    same.scheduler = type(same.scheduler).from_config(same.scheduler.config, beta_end=0.02)
    with pytest.raises(InputError, match=r"scheduler .*0\.02"):
        generate(same, PROMPTS, SEEDS, full.folder, sampler=SAMPLER)
    half = tiny.sd1().to(torch.float16)
    with pytest.raises(InputError, match="precision 'float32' against 'float16'"):
        generate(half, PROMPTS, SEEDS, full.folder, sampler=SAMPLER)


@pytest.mark.parametrize("component", ["vae", "unet", "text_encoder", "safety_checker"])
def test_one_value_of_any_network_makes_other_pictures(component: str) -> None:
    pipe = checked()
    before = Manifest.of(pipe, PROMPTS, SEEDS, SAMPLER)
    assert Manifest.of(checked(), PROMPTS, SEEDS, SAMPLER) == before
    weight = max(getattr(pipe, component).parameters(), key=torch.numel)
    weight.data.view(-1)[1] += 0.5  # not one of the few values that a fingerprint reads
    after = Manifest.of(pipe, PROMPTS, SEEDS, SAMPLER)
    assert after.id != before.id
    assert "model" in before.difference(after)


def test_tokenizer_and_configuration_tell_models_apart_and_notes_about_them_do_not(tmp_path: Path) -> None:
    pipe = checked()
    before = pipeline_digest(pipe)
    pipe.tokenizer(["a cat"], padding="max_length", max_length=7, truncation=True)  # leaves its padding behind
    pipe.save_pretrained(tmp_path)
    assert pipeline_digest(pipe) == before
    assert pipeline_digest(StableDiffusionPipeline.from_pretrained(tmp_path)) == before
    pipe.vae.register_to_config(scaling_factor=1.0)
    scaled = pipeline_digest(pipe)
    pipe.tokenizer.add_tokens(["<new>"])
    assert len({before, scaled, pipeline_digest(pipe)}) == 3


def checked() -> Any:
    """Return a model that looks at its own pictures."""
    pipe = tiny.sd1()
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(vision_config={**vision, "image_size": 8, "patch_size": 4}, projection_dim=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(config)
    pipe.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor(size=8, crop_size=8))
    return pipe


def test_batch_size_is_no_part_of_the_request(pipe: Any, full: ImageStore) -> None:
    generate(pipe, PROMPTS, SEEDS, full.folder, sampler=SamplingSettings(steps=2, guidance_scale=4.0, batch_size=5))


def test_files_left_over_in_the_folder_are_an_error(pipe: Any, tmp_path: Path) -> None:
    store = generate(pipe, PROMPTS[:2], SEEDS[:2], tmp_path, sampler=SAMPLER)
    Image.new("RGB", (16, 16)).save(tmp_path / "old_0.png")
    (tmp_path / ".DS_Store").write_bytes(b"")  # hidden files are ignored
    with pytest.raises(InputError, match=r"'old_0\.png'\. Move what does not belong"):
        generate(pipe, PROMPTS[:2], SEEDS[:2], tmp_path, sampler=SAMPLER)
    assert len(list(store.batches(1))) == 2  # reading goes by the manifest, whatever lies beside it


def test_a_picture_of_another_store_under_a_right_name_is_an_error(pipe: Any, tmp_path: Path) -> None:
    one = generate(pipe, PROMPTS[:2], SEEDS[:2], tmp_path / "one", sampler=SAMPLER)
    other = generate(pipe, PROMPTS[:2], SEEDS[:2], tmp_path / "other", sampler=SAMPLER, edit="001-cat")
    assert one.path(0).name == other.path(0).name
    one.path(0).write_bytes(other.path(0).read_bytes())
    with pytest.raises(InputError, match=f"made for this manifest .{one.manifest.id}., got one for"):
        one.missing()
    with pytest.raises(InputError, match="made for this manifest"):
        one[0]


def test_a_negative_prompt_changes_the_pictures(pipe: Any, full: ImageStore, tmp_path: Path) -> None:
    sampler = SamplingSettings(steps=2, guidance_scale=4.0, batch_size=2, negative_prompt="a cat")
    negative = generate(pipe, PROMPTS, SEEDS, tmp_path, sampler=sampler)
    check_paired(full, negative)
    assert not np.array_equal(pixels(full), pixels(negative))


def test_batches_read_all_pictures_in_order(full: ImageStore) -> None:
    sizes = [len(batch) for batch in full.batches(3)]
    read = np.stack([np.asarray(image) for batch in full.batches(3) for image in batch])
    assert sizes == [3, 3, 1]
    assert np.array_equal(read, pixels(full))


def test_pairing_is_by_row(pipe: Any) -> None:
    def store(prompts: list[str], seeds: list[int], sampler: SamplingSettings = SAMPLER, edit: str = "") -> ImageStore:
        return ImageStore(folder=Path("nowhere"), manifest=Manifest.of(pipe, prompts, seeds, sampler, edit))

    plain = store(["a cat", "a dog"], [0, 1])
    check_paired(plain, store(["a cat", "a dog"], [0, 1], edit="001-cat"))
    # A loader that sorts or drops a row answers another question on row i.
    for other in (store(["a dog", "a cat"], [1, 0]), store(["a cat"], [0]), store(["a cat", "a dog"], [0, 2])):
        with pytest.raises(InputError, match="expected the same prompts, seeds and sampler"):
            check_paired(plain, other)
    attack = store(["a cat §x", "a dog §y"], [0, 1])
    check_paired(plain, attack, same_prompts=False)
    with pytest.raises(InputError, match=r"row 0 \('a cat', 0\) against \('a cat §x', 0\)"):
        check_paired(plain, attack)
    for other in (store(["a cat §x", "a dog §y"], [1, 0]), store(["a cat §x"], [0])):
        with pytest.raises(InputError, match="expected the same"):
            check_paired(plain, other, same_prompts=False)
    with pytest.raises(InputError, match="steps 2 against 9"):
        check_paired(plain, store(["a cat", "a dog"], [0, 1], SamplingSettings(steps=9, guidance_scale=4.0)))


def test_requests_that_cannot_be_met(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a list of prompts and as many seeds, got 'a cat' and 1"):
        generate(pipe, "a cat", [0], tmp_path / "new")
    with pytest.raises(InputError, match="got 2 and 1"):
        generate(pipe, ["a cat", "a dog"], [0], tmp_path / "new")
    with pytest.raises(InputError, match="seeds from 0 on, got -1"):
        generate(pipe, ["a cat"], [-1], tmp_path / "new")
    with pytest.raises(InputError, match="expected a manifest"):
        ImageStore.open(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": "something/9"}')
    with pytest.raises(InputError, match="expected format 'erasure-images/2', got 'something/9'"):
        ImageStore.open(tmp_path)


def test_two_processes_make_the_pictures_of_one(full: ImageStore, tmp_path: Path) -> None:
    # Batches of 2, 2, 2 and 1 rows, by turns; in the end what the other has made.
    assert sorted(in_two_processes(rows_made, tmp_path)) == [[2, 3, 7], [2, 4, 7]]
    both = ImageStore.open(tmp_path)
    assert both.manifest == full.manifest
    # The batches are the same, the number of threads may not be: within one of 256 levels.
    assert np.abs(pixels(both).astype(int) - pixels(full)).max() <= 1
