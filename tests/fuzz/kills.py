"""Kills at random moments: a ledger is as before or after, and the next command leaves no temporary file.

    python -m tests.fuzz.kills --count 1000 --out results/kills

Each kill is one command in a forked process on a small model, ended by SIGKILL at a random moment of its duration. The
counts are written to `run.json` as the kills go on, and another call of the command continues them.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from erasure import Concept, Ledger, tinyworld
from erasure.cli.main import app
from erasure.erasers import make_eraser
from erasure.io.files import write_whole
from erasure.personalize.folder import Personalized
from erasure.provenance import provenance
from tests import tiny
from tests.eval import world

_FAST = ("--set", "eraser.rows=last-subject", "--no-measure", "--device", "cpu")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that is killed.

    Attributes:
        name: Name of the command.
        arguments: Its arguments, relative to the folder of the trial.
        problems: Faults of the folder after the kill, a line each; True for a command that was carried out.
    """

    name: str
    arguments: Sequence[str]
    problems: Callable[[Path, bool], list[str]]


def commands() -> list[Command]:
    """Return the commands; the first of each folder's two ledgers, `ledger`, has two entries."""
    return [
        Command(name="remove", arguments=("remove", "bird", "--ledger", "ledger", *_FAST), problems=_after_remove),
        Command(name="undo", arguments=("undo", "ledger", "002", "--device", "cpu"), problems=_after_undo),
        Command(
            name="replay",
            arguments=("replay", "ledger", "--model", "other", "--ledger", "again", "--device", "cpu"),
            problems=_after_replay,
        ),
        Command(
            name="export",
            arguments=("export", "ledger", "exported", "--no-images", "--device", "cpu"),
            problems=lambda folder, done: _whole(folder / "exported", "README.md", done),
        ),
        Command(
            name="evaluate",
            arguments=("evaluate", "tinyworld", "--removed", "cat", "--set", "total=8", "--out", "scores"),
            problems=lambda folder, done: [] if not done else _whole(folder / "scores", "report.html", done),
        ),
        Command(
            name="personalize",
            arguments=(
                *("personalize", "--images", "images", "--class", "dog", "--token", "<b>", "--out", "learned"),
                *("--set", "steps=2", "--measure-images", "0", "--device", "cpu"),
            ),
            problems=_after_personalize,
        ),
    ]


class Trials:
    """Trials of kills on copies of one folder.

    Args:
        folder: Empty folder for the inputs.
    """

    def __init__(self, folder: Path) -> None:
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        pipe = tiny.sd1(vocabulary="clip")
        for name in ("model", "other"):
            pipe.save_pretrained(self.inputs / name)
        ledger = Ledger.open_or_create(self.inputs / "ledger", pipe, str(self.inputs / "model"))
        uce = make_eraser("uce", rows="last-subject")
        for concept in (Concept(target="cat", anchor="dog"), Concept(target="boat")):
            ledger.remove(pipe, uce, [concept])
        (self.inputs / "images").mkdir()
        for number in range(3):
            Image.new("RGB", (64, 64), (90 * number, 40, 80)).save(self.inputs / "images" / f"{number}.png")
        self.folder = folder / "trial"
        self.seconds = {command.name: self._duration(command) for command in commands()}

    def kill(self, command: Command, number: int) -> tuple[bool, list[str]]:
        """Kill one call of a command at a moment drawn by its number.

        Returns:
            Whether it was still running, and the faults.
        """
        self._renew()
        process = self._started(command)
        time.sleep(random.Random(f"{command.name}/{number}").uniform(0, 1.05 * self.seconds[command.name]))
        os.kill(process, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        problems = command.problems(self.folder, False)
        code = os.waitstatus_to_exitcode(os.waitpid(self._started(command), 0)[1])
        if code not in (0, 2):  # 2: the killed call had finished
            problems.append(f"the next call ended with exit code {code}")
        problems += command.problems(self.folder, True)
        problems += [f"{path.name} is left" for path in self.folder.rglob("*.tmp")]
        return killed, problems

    def _duration(self, command: Command) -> float:
        self._renew()
        start = time.perf_counter()
        status = os.waitpid(self._started(command), 0)[1]
        assert status == 0, f"{command.name} ends with {status}"
        return time.perf_counter() - start

    def _renew(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.inputs, self.folder)

    def _started(self, command: Command) -> int:
        process = os.fork()
        if process:
            return process
        os.chdir(self.folder)
        os.environ["ERASURE_CACHE"] = str(self.folder / "cache")
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            app(list(command.arguments))
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 0)
        finally:
            os._exit(3)


def _after_remove(folder: Path, done: bool) -> list[str]:
    return _ledger_problems(folder / "ledger", [["cat", "boat", "bird"]] + [["cat", "boat"]] * (not done))


def _after_undo(folder: Path, done: bool) -> list[str]:
    return _ledger_problems(folder / "ledger", [["cat"]] + [["cat", "boat"]] * (not done))


def _after_replay(folder: Path, done: bool) -> list[str]:
    if not (folder / "again" / "ledger.json").exists():
        return ["there is no replay"] * done
    return _ledger_problems(folder / "again", [["cat", "boat"]] + [[], ["cat"]] * (not done))


def _after_personalize(folder: Path, done: bool) -> list[str]:
    if not (folder / "learned").exists():
        return ["nothing was learned"] * done
    Personalized.open(folder / "learned")
    return []


def _ledger_problems(path: Path, expected: Sequence[list[str]]) -> list[str]:
    """Return the faults of a ledger, whose standing targets must be as in one of some states."""
    ledger = Ledger.open(path)
    standing = [concept.target for entry in ledger.standing for concept in entry.concepts]
    return [*ledger.verify(), *([] if standing in expected else [f"stands {standing}, expected {expected}"])]


def _whole(folder: Path, file: str, done: bool) -> list[str]:
    """Return a fault unless a folder is there with its last file, or not there at all."""
    if not folder.exists():
        return [f"there is no {folder.name}"] * done
    return [] if (folder / file).is_file() else [f"{folder.name} is there without {file}"]


def counted(trials: Trials, count: int, out: Path) -> dict[str, Any]:
    """Continue the kills recorded in a folder up to a number of them, and return the record."""
    path = out / "run.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"kills": {}, "faults": []}
    kinds = commands()
    total = sum(each["killed"] for each in record["kills"].values())
    while total < count:
        for command in kinds:
            counts = record["kills"].setdefault(command.name, {"calls": 0, "killed": 0})
            killed, problems = trials.kill(command, counts["calls"])
            record["faults"] += [f"{command.name} {counts['calls']}: {problem}" for problem in problems]
            counts["calls"] += 1
            counts["killed"] += killed
            total += killed
        facts = {"command": "python -m tests.fuzz.kills", "seconds_of_a_call": trials.seconds, **provenance()}
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps({**facts, **record}, indent=1) + "\n").encode())
    return record


def small_world() -> Any:
    """Replace the tiny world by an untrained one of the tests for the length of a `with`."""

    def load(device: str = "cpu", dtype: Any = None) -> Any:
        return world.pipeline()

    def load_oracle(device: str = "cpu") -> Any:
        return world.oracle()

    return mock.patch.multiple(tinyworld, load=load, load_oracle=load_oracle)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("results/kills"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, small_world():
        record = counted(Trials(Path(folder)), options.count, options.out)
    total = sum(each["killed"] for each in record["kills"].values())
    print(f"{total} kills, {len(record['faults'])} faults")
    for fault in record["faults"]:
        print(fault)


if __name__ == "__main__":
    main()
