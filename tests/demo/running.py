"""The app in a process of its own, as a user starts it."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class App:
    """The running app.

    Attributes:
        address: Where it is.
        folder: Its temporary files.
        seconds: How long it took to start.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        started = time.monotonic()
        self.log = folder / "log.txt"
        environment = {**os.environ, "TMPDIR": str(folder), "ERASURE_CACHE": str(folder / "cache")}
        with self.log.open("w") as log:
            command = [sys.executable, str(ROOT / "app.py"), "--port", str(_free_port()), "--device", "cpu", *options]
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while not (found := re.search(r"the demo is at (\S+)", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - started < 120, self.log.read_text()
            time.sleep(0.2)
        self.address, self.seconds = found[1], time.monotonic() - started

    def stop(self) -> None:
        """End it as a system does."""
        self.process.terminate()
        self.process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]
