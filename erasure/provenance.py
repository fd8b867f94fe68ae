"""Provenance of a result: versions, device, commit, time and memory."""

import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("erasure", "torch", "diffusers", "transformers", "safetensors", "numpy")
"""Packages that decide a result."""


def provenance(*packages: str, device: str = "cpu", start: float | None = None) -> dict[str, Any]:
    """Return the conditions of a run as plain JSON values.

    Args:
        packages: Names of further packages whose versions matter.
        device: Device of the run.
        start: `time.perf_counter()` at the start of the run; None leaves out its seconds.
    """
    torch = sys.modules.get("torch")  # importing it for its number of threads would take seconds
    memory = {"peak_mib": round(peak_mib(), 1)}
    if torch is not None and device.startswith("cuda"):
        memory["peak_device_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return {
        "versions": versions(*packages),
        "device": device,
        "threads": None if torch is None else torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "git": None if (at_commit := commit()) is None else dict(at_commit),
        **({} if start is None else {"seconds": round(time.perf_counter() - start, 2)}),
        **memory,
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that decide a result, and of some more packages."""
    return {"python": platform.python_version(), **{name: _version(name) for name in (*PACKAGES, *packages)}}


@cache
def _version(package: str) -> str:
    """Return the version of a package; cached, since each of a list of removals records it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def commit() -> Mapping[str, Any] | None:
    """Return the commit of this library's own checkout and whether it has changes; None outside of one.

    Cached: the code that runs is the code of the first call.
    """
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "errors.py")  # else the checkout is another project's, with us inside
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ":/")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def peak_mib() -> float:
    """Return the peak of this process's resident memory in MiB."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
