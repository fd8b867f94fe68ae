"""Cases of the fuzz suite: `python -m tests.fuzz.run KIND COUNT [FIRST]` prints those that fail."""

import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from erasure.errors import ErasureError

from .targets import TARGETS, Samples, check_error


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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        inputs = Samples(Path(made))
        for chosen in TARGETS if sys.argv[1] == "all" else [sys.argv[1]]:
            start, seconds = time.process_time(), time.perf_counter()
            faults = failures(chosen, int(sys.argv[2]), inputs, *map(int, sys.argv[3:]))
            print("\n\n".join(faults))
            spent = time.process_time() - start
            print(f"{chosen}: {len(faults)} of {sys.argv[2]} fail, {spent:.1f} s", flush=True)
