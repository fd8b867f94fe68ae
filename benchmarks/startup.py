"""Cost of importing the library and of the command's help, beside an empty interpreter."""

import subprocess
import sys
import time
from typing import Any

from .record import arguments, spread, write_run

VERSION = 1
CASES = {
    "empty interpreter": [sys.executable, "-c", "pass"],
    "import erasure": [sys.executable, "-c", "import erasure"],
    "erasure --help": [sys.executable, "-c", "from erasure.cli.main import main; main()", "--help"],
}


def main() -> None:
    """Time each command in turn, print a line each, and write run.json where asked."""
    options = arguments(__doc__).parse_args()
    started = time.perf_counter()
    for command in CASES.values():  # the first of each fills the file cache
        seconds(command)
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.repeats):  # in turns, so that a busy moment hits all alike
        for name, command in CASES.items():
            taken[name].append(seconds(command))
    empty = spread(taken["empty interpreter"])["seconds"]
    results = [case(name, timings, empty) for name, timings in taken.items()]
    for result in results:
        print(f"{result['case']:<18} {result['seconds']:.3f} s, {result['above_empty_seconds']:.3f} s above empty")
    write_run(options, name="startup", version=VERSION, results=results, started=started, torch=None)


def case(name: str, timings: list[float], empty: float) -> dict[str, Any]:
    """Return the median of a command and what it is above the empty interpreter's."""
    entry = spread(timings)
    return {"case": name, **entry, "above_empty_seconds": entry["seconds"] - empty}


def seconds(command: list[str]) -> float:
    """Return the seconds of a command, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
