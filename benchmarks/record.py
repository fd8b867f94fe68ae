"""Records of benchmarks: settings, numbers, machine and versions."""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from erasure.io.files import write_whole
from erasure.provenance import provenance


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="folder for run.json, such as results/benchmarks/closed-form")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each thing; the median counts")
    return parser


def timed(work: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Return the seconds of each repeat and their median, after one call that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return spread(seconds)


def spread(seconds: list[float]) -> dict[str, Any]:
    """Return timings with the median that stands for them."""
    return {"seconds": statistics.median(seconds), "all_seconds": seconds}


def write_run(
    options: argparse.Namespace,
    *,
    name: str,
    version: int,
    results: list[dict[str, Any]],
    started: float,
    torch: Any,
    device: str = "cpu",
) -> None:
    """Write `run.json` into the folder that was asked for, if one was, and say where.

    Args:
        options: Options of the command line, which are recorded, of folders their names.
        name: Name of the benchmark.
        version: Version of the benchmark; a change of the timed work raises it.
        results: One mapping a measured case.
        started: `time.perf_counter()` at the start of the run.
        torch: The module, for the number of threads; None where the benchmark does not use it.
        device: Device of the run; a GPU is named.
    """
    if options.out is None:
        return
    config = {key: value.name if isinstance(value, Path) else value for key, value in vars(options).items()}
    record = {
        "benchmark": name,
        "version": version,
        "config": {key: value for key, value in config.items() if key != "out"},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance(device=device, start=started),
        "device": f"cuda, {torch.cuda.get_device_name()}" if device == "cuda" else device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "peak_mib": round(peak_mib(), 1),
        "results": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "run.json"
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    print(path)


def peak_mib() -> float:
    """Return the peak of this process's resident memory, torch's tensors included, since `reset_peak` if it worked."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts with what the parent process had
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak() -> None:
    """Have `peak_mib` start from what is held now, where the system can do that: on Linux."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def resident_mib() -> float:
    """Return the resident memory of this process in MiB; its peak where the system does not report it."""
    path = Path("/proc/self/statm")
    if not path.exists():
        return peak_mib()
    return int(path.read_text().split()[1]) * resource.getpagesize() / 2**20


def _processor() -> str:
    """Return the processor's name: platform.processor() is empty on most Linux systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
