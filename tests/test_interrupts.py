"""Interrupts of the command: one line and exit code 2, whenever they come."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def processor_time(pid: int) -> float:
    """Return the processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def interrupted_after(seconds: float, folder: Path, *arguments: str) -> tuple[int, str]:
    """Return exit code and stderr of the command, interrupted after so much processor time since it handles them."""
    script = folder / "erasure"  # as the installed script, which Python starts before any code of ours runs
    script.write_text("import erasure.cli\nprint('up', flush=True)\nfrom erasure.cli.main import main\nmain()\n")
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    end = processor_time(process.pid) + seconds
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and processor_time(process.pid) < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processor time of a process from /proc")
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.4, 1.0, 2.0])
def test_an_interrupt_during_the_imports_is_one_line(tmp_path: Path, seconds: float) -> None:
    code, err = interrupted_after(seconds, tmp_path, "remove", "cat", "--no-measure", "--ledger", "here")
    assert (code, err.strip().splitlines()[-1:]) == (
        2,
        ["erasure: Interrupted. Finished entries stay in the ledger; no file is half written."],
    )
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
