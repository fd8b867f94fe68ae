"""Cases of the fuzz suite.

    python -m tests.fuzz.run [KIND COUNT FIRST] [--out results/fuzz]

With a kind of input its cases that fail are printed; without one the 20,000 of the marked run are made and recorded.
"""

import argparse
import json
import os
import random
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from erasure.errors import ErasureError
from erasure.io.files import make_folder, write_whole
from erasure.provenance import provenance

from .targets import TARGETS, Samples, check_error

QUICK = {"ledger": 200, "edit": 400, "yaml": 400, "csv": 600, "folders": 200, "options": 200}
"""Cases of each kind in every run of the tests: 2,000 in all."""
MANY = {kind: 10 * count for kind, count in QUICK.items()}
"""Cases of the marked run: 20,000, others than the quick ones."""


def failure_of(kind: str, number: int, samples: Samples) -> str | None:
    """Return the fault of one case as text; None if it ends well or by an error of one line."""
    chance = random.Random(f"{kind}/{number}")
    place = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            TARGETS[kind](samples, chance, Path(folder))
        except ErasureError as error:
            try:
                check_error(error)
            except AssertionError as fault:
                return f"{kind} {number}: {fault}"
        except Exception:
            return f"{kind} {number}: {traceback.format_exc()}"
        finally:
            os.chdir(place)
    return None


def failures(kind: str, count: int, samples: Samples, first: int = 0) -> list[str]:
    """Return the faults of some cases of a kind."""
    found = (failure_of(kind, number, samples) for number in range(first, first + count))
    return [fault for fault in found if fault is not None]


def record(samples: Samples, out: Path) -> dict[str, Any]:
    """Make the cases of the marked run, and write their counts and faults to `run.json` in a folder."""
    kinds: dict[str, Any] = {}
    for kind, count in MANY.items():
        start = time.process_time()
        faults = failures(kind, count, samples, first=QUICK[kind])
        kinds[kind] = {"cases": count, "faults": faults, "seconds": round(time.process_time() - start, 1)}
    facts = {"command": "python -m tests.fuzz.run", "total": sum(MANY.values()), "kinds": kinds, **provenance()}
    make_folder(out)
    write_whole(out / "run.json", (json.dumps(facts, indent=1) + "\n").encode())
    return kinds


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="?", choices=TARGETS, help="Kind of input; without one, all cases are recorded.")
    parser.add_argument("count", nargs="?", type=int, default=100)
    parser.add_argument("first", nargs="?", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/fuzz"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = Samples(Path(folder))
        if options.kind is None:
            kinds = record(samples, options.out)
        else:
            faults = failures(options.kind, options.count, samples, options.first)
            kinds = {options.kind: {"cases": options.count, "faults": faults}}
    for kind, counts in kinds.items():
        print(*counts["faults"], f"{kind}: {len(counts['faults'])} of {counts['cases']} fail", sep="\n\n")


if __name__ == "__main__":
    main()
