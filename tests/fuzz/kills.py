"""Kills at random moments: a ledger is as before or after, and the next command leaves no temporary file.

    python -m tests.fuzz.kills --count 1000 --out results/kills

Each kill is one command on a small model, ended by SIGKILL. Of forty calls 19 end at a random moment of the command's
duration and 20 just before a random one of its changes on the disk, both in a process forked after the imports; one is
a new process, imports included. The command is then called again, in a process of its own. The counts are written to
`run.json` as the kills go on, and another call of the harness continues them.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from erasure import Concept, Ledger, tinyworld
from erasure.cli.main import app
from erasure.cli.setup import extension_points
from erasure.erasers import make_eraser
from erasure.eval.protocols import sources
from erasure.io.files import write_whole
from erasure.personalize.folder import Personalized
from erasure.provenance import provenance
from erasure.sampling import SamplingSettings
from tests import tiny
from tests.eval import world

from .moments import Changes

_ROOT = Path(__file__).parents[2]
_FAST = ("--set", "eraser.rows=last-subject", "--no-measure", "--device", "cpu")
PHASES = ("before", "among", "after", "new")
"""Moments of a kill: before the first change on the disk, among the changes, after the last, in a new process."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that is killed.

    Attributes:
        name: Name of the command.
        arguments: Its arguments, relative to the folder of the trial.
        problems: Faults of the folder after the kill, a line each; True for a command that was carried out.
        in_new_process: Whether some of its calls are new processes; False for a command that reads a patched model.
    """

    name: str
    arguments: Sequence[str]
    problems: Callable[[Path, bool], list[str]]
    in_new_process: bool = True


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
            in_new_process=False,
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
        extension_points()  # imports the packages, so that no call has to
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
        self._changes = Changes()
        self._durations: dict[str, list[float]] = {}
        self._new_seconds: dict[str, float] = {}
        self.changes = {command.name: self._measure(command) for command in commands()}

    def kill(self, command: Command, number: int) -> tuple[str | None, list[str]]:
        """Kill one call of a command at a moment drawn by its number.

        Returns:
            The phase of the call in which it was killed, None if it had ended; and the faults.
        """
        self._renew()
        chance = random.Random(f"{command.name}/{number}")
        if number % 40 == 0 and command.in_new_process:
            phase = self._killed_new(command, chance)
        elif number % 2:
            phase = self._killed(command, stop_before=chance.randrange(self.changes[command.name]))
        else:
            # The duration of the last calls, as others may keep the machine busy.
            seconds = statistics.median(self._durations[command.name][-5:])
            phase = self._killed(command, after=chance.uniform(0, 1.02 * seconds))
        problems = command.problems(self.folder, False)
        start = time.perf_counter()
        code = self._code(self._started(command))
        if code not in (0, 2):  # 2: the killed call had finished
            problems.append(f"the next call ended with exit code {code}")
        if code == 0:
            self._durations[command.name].append(time.perf_counter() - start)
        problems += command.problems(self.folder, True)
        problems += [f"{path.name} is left" for path in self.folder.rglob("*.tmp")]
        return phase, problems

    def _killed(self, command: Command, *, after: float = 0.0, stop_before: int | None = None) -> str | None:
        """Kill a call some seconds after its start, or before one of its changes; return the phase."""
        process = self._started(command, stop_before)
        if stop_before is None:
            time.sleep(after)
            os.kill(process, signal.SIGKILL)
        if self._code(process) != -signal.SIGKILL:
            return None
        changes = self._changes.count
        return "before" if changes == 0 else "among" if changes < self.changes[command.name] else "after"

    def _killed_new(self, command: Command, chance: random.Random) -> str | None:
        """Kill a call in a new process, imports included."""
        if command.name not in self._new_seconds:
            start = time.perf_counter()
            assert self._new(command).wait() == 0, command.name
            self._new_seconds[command.name] = time.perf_counter() - start
            self._renew()
        process = self._new(command)
        time.sleep(chance.uniform(0.3, 1) * self._new_seconds[command.name])  # mostly after the imports
        process.kill()
        return "new" if process.wait() == -signal.SIGKILL else None

    def _new(self, command: Command) -> "subprocess.Popen[bytes]":
        # The environment of the caller, with the library of this folder.
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "ERASURE_CACHE": str(self.folder / "cache")}
        return subprocess.Popen(
            [sys.executable, "-m", "erasure.cli", *command.arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _measure(self, command: Command) -> int:
        """Call a command once, note its duration, and return its number of changes on the disk."""
        self._renew()
        start = time.perf_counter()
        code = self._code(self._started(command))
        assert code == 0, f"{command.name} ends with {code}"
        self._durations[command.name] = [time.perf_counter() - start]
        return self._changes.count

    def _renew(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.inputs, self.folder)

    def _code(self, process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _started(self, command: Command, stop_before: int | None = None) -> int:
        process = os.fork()
        if process:
            return process
        os.chdir(self.folder)
        os.environ["ERASURE_CACHE"] = str(self.folder / "cache")
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        self._changes.follow(stop_before)
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
    total = kills_of(record)
    while total < count:
        for command in commands():
            counts = record["kills"].setdefault(command.name, {"calls": 0, **dict.fromkeys(PHASES, 0)})
            phase, problems = trials.kill(command, counts["calls"])
            record["faults"] += [f"{command.name} {counts['calls']}: {problem}" for problem in problems]
            counts["calls"] += 1
            if phase is not None:
                counts[phase] += 1
                total += 1
        facts = {"command": "python -m tests.fuzz.kills", "changes_of_a_call": trials.changes, **provenance()}
        out.mkdir(parents=True, exist_ok=True)
        record = {**facts, "total": total, "kills": record["kills"], "faults": record["faults"]}
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    return record


def kills_of(record: Mapping[str, Any]) -> int:
    """Return the number of kills that a record counts."""
    return sum(counts[phase] for counts in record["kills"].values() for phase in PHASES)


def small_world() -> Any:
    """Replace the tiny world by an untrained one of the tests, sampled in two steps, for the length of a `with`."""

    def load(device: str = "cpu", dtype: Any = None) -> Any:
        return world.pipeline()

    def load_oracle(device: str = "cpu") -> Any:
        return world.oracle()

    def sampler_of(*_: Any) -> SamplingSettings:
        return SamplingSettings(steps=2, guidance_scale=2.0)

    patches = contextlib.ExitStack()
    patches.enter_context(mock.patch.multiple(tinyworld, load=load, load_oracle=load_oracle))
    patches.enter_context(mock.patch.object(sources, "sampler_of", sampler_of))
    return patches


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("results/kills"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, small_world():
        record = counted(Trials(Path(folder)), options.count, options.out)
    print(f"{kills_of(record)} kills, {len(record['faults'])} faults")
    for fault in record["faults"]:
        print(fault)


if __name__ == "__main__":
    main()
