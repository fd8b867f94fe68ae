"""Scripts in a process in which this package cannot be imported, as in that of a person who has an export alone."""

import json
import subprocess
import sys
from pathlib import Path

_SERVER = """
import json, os, sys, traceback

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"annotated_types", "erasure", "jaxtyping", "pydantic", "typer"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import peft, torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

def run(script, output, arguments):
    sys.argv = ["-c", *arguments]
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    code = 0
    try:
        exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    child = os.fork()
    if not child:
        run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Elsewhere:
    """A process without this package, of which each script has a copy of its own.

    Attributes:
        folder: Temporary files, the caches of the Hub among them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        }
        command = [sys.executable, "-c", _SERVER]
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, script: str, *arguments: str) -> str:
        """Run a script with its arguments, which must not fail, and return its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        output = self.folder / "output.txt"
        self._process.stdin.write(json.dumps([script, str(output), arguments]) + "\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline().strip()
        text = output.read_text() if output.exists() else ""
        assert code == "0", text
        return text

    def stop(self) -> None:
        self._process.communicate()
