"""Starting a module in several processes, as `accelerate launch` does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def in_two_processes(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a module in two processes and check that both end well."""
    # "--multi_gpu" starts the processes whatever they run on ("--cpu" starts one only); the module asks for the CPU.
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, "--dynamo_backend", "no"]
    done = subprocess.run(
        [*launch, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    return done
