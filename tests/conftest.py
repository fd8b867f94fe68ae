"""What every test runs under: no network, and the marked tests only where they were asked for or can run."""

import os
import shutil

import pytest
from hypothesis import settings

from tests import type_checks

# Before anything imports huggingface_hub, which reads it once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before anything imports torch, in this process and those it starts: tiny models gain nothing from a second thread,
# and on a busy machine threads wait for each other most of the time (measured: a pass of a tiny UNet 13 -> 600 ms).
os.environ.setdefault("OMP_NUM_THREADS", "1")

type_checks.install()

# A busy machine is no fault of the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

EXTRA = ("gpu", "weights", "slow")
LONGEST = ("tests/demo/", "tests/contract/", "tests/test_runs.py")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no process is left with one at the end of a run in parallel.

    Skip a marked test unless `-m` speaks of its marker, browser tests apart, and the machine has what it needs.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    asked = config.getoption("-m")
    for item in items:
        for name in (*EXTRA, "browser"):
            if item.get_closest_marker(name) and (reason := _missing(name, asked)):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing(name: str, asked: str) -> str:
    if name == "browser":
        return "" if chromium() else f"needs one of {', '.join(CHROMIUM)} on the path: apt-get install chromium"
    if name not in asked:
        return f"runs with -m {name}"
    if name == "gpu":
        import torch

        return "" if torch.cuda.is_available() else "needs a CUDA device"
    return ""


def chromium() -> str | None:
    """Return the browser of the browser tests."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)
