"""What every test runs under: no network, and the marked tests only where they were asked for."""

import os
import shutil

import pytest

# Before anything imports huggingface_hub, which reads it once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

EXTRA = ("gpu", "browser", "weights", "slow")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip a marked test unless `-m` speaks of its marker and the machine has what it needs."""
    asked = config.getoption("-m")
    for item in items:
        for name in EXTRA:
            if item.get_closest_marker(name) and (reason := _missing(name, asked)):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing(name: str, asked: str) -> str:
    if name not in asked:
        return f"runs with -m {name}"
    if name == "gpu":
        import torch

        return "" if torch.cuda.is_available() else "needs a CUDA device"
    if name == "browser":
        return "" if any(map(shutil.which, CHROMIUM)) else f"needs one of {', '.join(CHROMIUM)} on the path"
    return ""
