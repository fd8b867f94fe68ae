"""Folders that are there whole or not at all, and tensors that are written one by one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from erasure.errors import InputError
from erasure.io import files
from erasure.io.files import check_free, check_places, dropping_empty_folders, make_folder, new_folder
from erasure.io.tensor_cache import making_timed, stored
from erasure.io.tensor_files import copy_finite, data_size, rewrite_tensors, tensor_names, write_tensors

TENSORS = {
    "b": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "a": torch.arange(5, dtype=torch.int64),
    "t": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
}


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "above" / "out") as folder:
        (folder / "file").write_text("all of it")
        assert not (tmp_path / "above" / "out").exists()
    assert (tmp_path / "above" / "out" / "file").read_text() == "all of it"
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def cut_short() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("half of it")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_short()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_another_is_not(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    with pytest.raises(InputError, match="expected a new or empty folder"), new_folder(tmp_path / "out"):
        pass
    with pytest.raises(InputError, match="expected a new or empty folder"), new_folder(tmp_path / "out" / "file"):
        pass
    with pytest.raises(InputError, match="expected a folder that can be written"), new_folder(tmp_path / "out/file/x"):
        pass


def test_a_folder_that_cannot_be_replaced_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # a shell in it would be left in a deleted folder
    with pytest.raises(InputError, match="expected a folder that can be replaced, got the working folder"):
        check_free(Path("."))
    assert Path("../here").is_dir()
    (tmp_path / "mount").mkdir()
    with monkeypatch.context() as mounted:
        mounted.setattr("os.path.ismount", lambda path: Path(path).name == "mount")
        with pytest.raises(InputError, match="expected a folder that can be replaced, got the root of a file system"):
            check_free(tmp_path / "mount")
    with monkeypatch.context() as read_only:
        read_only.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(InputError, match=r"expected a folder that can be written, got .*, which cannot be"):
            check_free(tmp_path / "new" / "out")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="expected a folder that can be written"), new_folder(tmp_path / "loop"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "loop", "mount"]


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "ours.safetensors", TENSORS)
    found = load_file(tmp_path / "ours.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert data_size(tmp_path / "ours.safetensors") == sum(t.numel() * t.element_size() for t in TENSORS.values())
    with pytest.raises(InputError, match="expected a tensor of numbers"):
        write_tensors(tmp_path / "complex.safetensors", {"z": torch.zeros(1, dtype=torch.complex64)})


def test_a_file_is_copied_with_some_tensors_changed(tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "old.safetensors")
    changed = {"b": lambda tensor: tensor + 1, "t": lambda tensor: tensor * 2}
    for at_least, kind in ((None, torch.float16), (torch.float32, torch.float32)):
        new = tmp_path / f"{kind}.safetensors"
        rewrite_tensors(tmp_path / "old.safetensors", new, changed, at_least=at_least)
        found = load_file(new)
        assert found["b"].dtype == kind
        assert torch.equal(found["b"], TENSORS["b"].to(kind) + 1)
        assert torch.equal(found["t"], TENSORS["t"] * 2)
        assert all(torch.equal(found[name], TENSORS[name]) for name in ("a", "scalar", "empty"))
        assert sorted(tensor_names(new)) == sorted(TENSORS)


def test_a_write_deletes_what_a_killed_process_left(tmp_path: Path) -> None:
    """A temporary name says whose it is: those of running processes and of other machines stay."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, other = files._MACHINE, "0" * 6
    left = [tmp_path / f".a.{mine}-{ended.pid}-{'0' * 8}.tmp", tmp_path / f".b.{mine}-{ended.pid}-{'1' * 8}.tmp"]
    left[0].write_bytes(b"half")
    left[1].mkdir()
    kept = [tmp_path / f".a.{mine}-{os.getpid()}-{'0' * 8}.tmp", tmp_path / f".a.{other}-{ended.pid}-{'0' * 8}.tmp"]
    for path in kept:
        path.write_bytes(b"half")
    files.write_whole(tmp_path / "c", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["c", *(path.name for path in kept)])


def test_places_of_results_are_checked_before_the_work(tmp_path: Path) -> None:
    check_places(tmp_path / "new" / "folder", "run.json", "measures/")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.json").mkdir()
    (tmp_path / "measures").touch()
    (tmp_path / "report.html").touch()
    check_places(tmp_path, "report.html")
    for name, message in (("run.json", "the place of a file, got a folder"), ("measures/", "of a folder, got a file")):
        with pytest.raises(InputError, match=message):
            check_places(tmp_path, "report.html", name)
    with pytest.raises(InputError, match="expected a folder that can be written"):
        check_places(tmp_path / "measures" / "x", "run.json")


def test_a_folder_without_permission_is_refused_before_the_work(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(InputError, match="expected a folder that can be written"):
        check_places(tmp_path / "ledger", "run.json")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_that_is_not_finite_is_told_as_its_file_is_copied(tmp_path: Path, dtype: torch.dtype) -> None:
    largest = torch.full((300_000,), torch.finfo(dtype).max, dtype=dtype)
    largest[0] = -torch.finfo(dtype).max
    tensors = {"whole": largest, "empty": largest[:0].clone(), "ids": torch.arange(3), "last": largest[:5].clone()}
    for value in (None, torch.inf, -torch.inf, torch.nan):
        if value is not None:
            tensors["last"][-1] = value
        file, other = tmp_path / f"{value}.safetensors", tmp_path / f"{value}-changed.safetensors"
        save_file(tensors, file, metadata={"format": "pt", "about": "x"})
        copies = {
            tmp_path / f"{value}-copy.safetensors": lambda to, file=file: copy_finite(file, to, InputError),
            other: lambda to, file=file: rewrite_tensors(file, to, {"empty": torch.neg}, not_finite=InputError),
        }
        for to, copy in copies.items():
            if value is None:
                copy(to)
                assert load_file(to).keys() == tensors.keys()
            else:
                with pytest.raises(InputError, match=r"^last$"):
                    copy(to)
    assert (tmp_path / "None.safetensors").read_bytes() == (tmp_path / "None-copy.safetensors").read_bytes()


def test_a_file_is_read_and_written_once(tmp_path: Path) -> None:
    save_file({f"{i}": torch.full((1000, 500), float(i)) for i in range(4)}, tmp_path / "file")
    size = (tmp_path / "file").stat().st_size
    ways = {
        "unseen": lambda to: rewrite_tensors(tmp_path / "file", to, {"1": torch.neg}),
        "looked at": lambda to: rewrite_tensors(tmp_path / "file", to, {"1": torch.neg}, not_finite=InputError),
        "copied": lambda to: copy_finite(tmp_path / "file", to, InputError),
    }
    for name, way in ways.items():
        before = bytes_moved()
        way(tmp_path / name)
        read, written = (after - then for after, then in zip(bytes_moved(), before, strict=True))
        assert size <= read < 1.05 * size, name
        assert size <= written < 1.05 * size, name
        assert (tmp_path / name).stat().st_size == size


def bytes_moved() -> tuple[int, int]:
    """Return the bytes that this process has read and written so far."""
    path = Path("/proc/self/io")
    if not path.exists():
        pytest.skip("no count of bytes on this system")
    counts = dict(line.split(": ") for line in path.read_text().splitlines())
    return int(counts["rchar"]), int(counts["wchar"])


def test_folders_that_a_failure_leaves_empty_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()

    def failing() -> None:
        with dropping_empty_folders():
            for name in ("a/b", "a/c/d", "before/e", "before"):
                make_folder(tmp_path / name)
            (tmp_path / "a" / "b" / "file").touch()
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"a", "a/b", "a/b/file", "before"}
    with dropping_empty_folders():
        make_folder(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()


def test_the_time_of_making_what_a_folder_lacks_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def make(seconds: float) -> dict[str, torch.Tensor]:
        nonlocal now
        now += seconds
        return {"a": torch.zeros(1)}

    monkeypatch.setattr(time, "process_time", lambda: now)
    with making_timed() as making:
        stored(tmp_path, ["outer"], lambda: {**stored(tmp_path, ["inner"], lambda: make(2)), **make(1)})
        stored(tmp_path, ["inner"], lambda: make(10))
        make(5)
    assert making.seconds == 3
    stored(tmp_path, ["later"], lambda: make(7))
    assert making.seconds == 3
