"""Processes that work together, as `accelerate launch` starts them, beside one."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from typer.testing import CliRunner

from erasure import Concept, Ledger, make_eraser
from erasure.backbones import backbone_of
from erasure.cli.main import app
from erasure.errors import InputError, LostProcessError
from erasure.eval.images.store import ImageStore, fill
from erasure.io.processes import alone, are_together, by_first, is_first, shared_out, together, wait
from erasure.sampling import SamplingSettings
from tests import tiny
from tests.demo.running import free_port
from tests.processes import in_copies, in_two_processes

NAMES = ("cat", "Pablo Novanar", "Elena Rakil")


def shares() -> tuple[list[int], list[int], int, str]:
    done: list[int] = []
    with together():
        results = shared_out([1, 2, 3], lambda item: done.append(item) or 10 * item)
        with alone():
            assert shared_out([1, 2], lambda item: item) == [1, 2]
        written = by_first(lambda: len(done))
        with pytest.raises(InputError) as caught:
            by_first(refused)
        wait()
    assert not are_together()
    return done, results, written, str(caught.value)


def refused() -> None:
    assert not are_together()
    raise InputError("x: expected this, got that.")


def test_work_is_shared_out_and_what_the_first_does_is_the_result_of_all() -> None:
    message = "x: expected this, got that."
    assert in_two_processes(shares) == [([1, 3], [10, 20, 30], 2, message), ([2], [10, 20, 30], 2, message)]


def without_the_other(first: Callable[[], object], port: str) -> list[str]:
    """Return the errors of two processes, of which the second ends before the first calls a function."""

    def process(rank: int) -> str:
        os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        PartialState._reset_state()  # of the process that this is a copy of
        with together():
            if rank:
                return ""
            with pytest.raises(LostProcessError) as caught:
                first()
        return str(caught.value)

    return in_copies(partial(process, 0), partial(process, 1))


@pytest.mark.parametrize("first", [wait, lambda: by_first(lambda: 1), lambda: shared_out([1, 2], str)])
def test_a_process_that_is_lost_is_one_line_in_the_others(first: Callable[[], object]) -> None:
    line, other = without_the_other(first, str(free_port()))
    assert line.startswith("processes: expected 2 that go on together, got one that has ended (")
    assert "\n" not in line
    assert other == ""


def test_a_process_of_its_own_does_all() -> None:
    assert shares() == ([1, 2, 3], [10, 20, 30], 3, "x: expected this, got that.")


def removed(folder: Path, output: Path) -> tuple[int, int]:
    """Run the command; return its exit code and the number of tokens that this process read."""
    from transformers import CLIPTextModel

    read: list[int] = []

    def note(module: Any, inputs: Any) -> None:
        if isinstance(module, CLIPTextModel):
            read.append(inputs[0].numel())

    arguments = ["remove", "--from", folder / "names.csv", "--model", folder / "model", "--ledger", output]
    with torch.nn.modules.module.register_module_forward_pre_hook(note):
        result = CliRunner().invoke(app, [*map(str, arguments), "--method", "speed", "--no-measure"])
    assert not result.exception or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, sum(read)


def test_a_list_is_removed_by_two_processes_as_by_one(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "names.csv").write_text("\n".join(("concept", *NAMES)) + "\n")
    code, tokens = removed(tmp_path, tmp_path / "one")
    both = in_two_processes(removed, tmp_path, tmp_path / "two")  # with all that this one has imported
    assert [code, *(other for other, _ in both)] == [0, 0, 0]
    assert all(0 < share < tokens for _, share in both)
    one, two = (Ledger.open(tmp_path / name) for name in ("one", "two"))
    assert [entry.concepts[0].target for entry in two.entries] == list(NAMES)
    assert [step["id"] for step in json.loads((tmp_path / "two" / "run.json").read_text())["steps"]] == [
        entry.id for entry in two.entries
    ]
    assert two.verify(pipe) == []
    with one.applied_to(pipe):
        weights = {name: p.detach().clone() for name, p in backbone_of(pipe).parameters(lambda _: True).items()}
    with two.applied_to(pipe):
        assert all(torch.equal(weights[name], p) for name, p in backbone_of(pipe).parameters(lambda _: True).items())


def measured(output: Path) -> tuple[int, str]:
    """Run the command with measures of few and short images; return its exit code and what it printed."""
    settings = ("per_concept=2", "near=1", "far=2", "steps=1", "batch_size=2", "health=false")
    options = [part for setting in settings for part in ("--set", f"measure.{setting}")]
    with torch.random.fork_rng():
        result = CliRunner().invoke(app, ["remove", "cat", "--ledger", str(output), *options, "--json"])
    assert not result.exception or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.stdout


@pytest.mark.slow
def test_two_processes_measure_a_removal_as_one_does(tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    first, second = in_two_processes(measured, two)
    code, alone_said = measured(one)
    assert [code, first[0], second[0]] == [0, 0, 0]
    assert [step["id"] for step in json.loads(first[1])["steps"]] == ["001"]
    assert json.loads(first[1])["steps"][0].keys() == json.loads(alone_said)["steps"][0].keys()
    records = [json.loads((folder / "measures" / "001.json").read_text()) for folder in (one, two)]
    assert all(record.pop("measure_seconds") > 0 for record in records)
    assert len({record.pop("state") for record in records}) == 2  # which names the edit and when it was made
    assert records[0] == records[1]
    assert all((two / name).is_file() for name in ("run.json", "report.html"))
    for state in ("original", "001-*"):
        [files, others] = (sorted(folder.glob(f"pictures/{state}/*.png")) for folder in (one, two))
        assert len(files) == records[0]["pictures"]
        for file, other in zip(files, others, strict=True):
            with Image.open(file) as image, Image.open(other) as again:
                assert file.name == other.name
                assert np.abs(np.asarray(image, np.int16) - np.asarray(again, np.int16)).max() <= 1


def fitted_by_the_first(folder: Path) -> list[str]:
    pipe, fits = tiny.sd1(), []
    (folder / "captions.txt").write_text("a boat\n")
    eraser = make_eraser("oce", captions=str(folder / "captions.txt"))
    with together():
        by_first(lambda: Ledger.open_or_create(folder / "ledger", pipe, "tiny") and None)
        ledger = Ledger.open(folder / "ledger")
        wait()
        requests = [[Concept(target=name)] for name in NAMES[:2]]
        for entry in ledger.remove_each(pipe, eraser, requests, on_progress=fits.append):
            assert ledger.entries[-1] == entry
    return [fit.stage for fit in fits]


def test_removals_on_weights_that_stand_are_fitted_by_the_first_alone(tmp_path: Path) -> None:
    first, second = in_two_processes(fitted_by_the_first, tmp_path)
    assert first
    assert not second
    assert [entry.id for entry in Ledger.open(tmp_path / "ledger").entries] == ["001", "002"]


def test_what_is_wrong_ends_all_processes_and_leaves_nothing(tmp_path: Path) -> None:
    tiny.sd1().save_pretrained(tmp_path / "model")
    (tmp_path / "names.csv").write_text("concept\ncat\n" + "long " * 200 + "\n")
    assert [code for code, _ in in_two_processes(removed, tmp_path, tmp_path / "two")] == [2, 2]
    assert not (tmp_path / "two").exists()


def filled(folder: Path) -> int:
    """Fill an open store; return the number of images that this process made."""
    pipe = tiny.sd1()
    passes: list[int] = []
    with together(), pipe.unet.register_forward_pre_hook(lambda *_: passes.append(1)):
        settings = SamplingSettings(steps=2, batch_size=1)
        store = fill(pipe, ImageStore.of_state(folder, "original", [("a cat", seed) for seed in range(3)], settings))
        assert not store.missing()
    return len(passes) // settings.steps


def test_images_of_an_open_store_are_shared_out(tmp_path: Path) -> None:
    assert in_two_processes(filled, tmp_path / "two") == [2, 1]
    assert filled(tmp_path / "one") == 3
    assert is_first()
    files = sorted((tmp_path / "one" / "original").glob("*.png"))
    assert len(files) == 3
    for file in files:
        with Image.open(file) as one, Image.open(tmp_path / "two" / "original" / file.name) as two:
            assert one.tobytes() == two.tobytes()
