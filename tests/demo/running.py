"""The app in a process of its own, as a user starts it."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]


class App:
    """The running app.

    Attributes:
        address: Where it is.
        folder: Its temporary files.
        first: What the address answered while the model was loaded.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.log = folder / "log.txt"
        environment = {**os.environ, "TMPDIR": str(folder), "ERASURE_CACHE": str(folder / "cache")}
        with self.log.open("w") as log:
            command = [sys.executable, str(ROOT / "app.py"), "--port", str(free_port()), "--device", "cpu", *options]
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self.address = self._said(r"starting at (\S+)")
        self.first = answer(self.address)
        assert self._said(r"the demo is at (\S+)") == self.address

    def _said(self, pattern: str) -> str:
        """Wait, however long a busy machine takes, until the log has a line, and return its group."""
        while not (line := re.search(pattern, self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)
        return line[1]

    def stop(self) -> None:
        """End it as a system does."""
        self.process.terminate()
        self.process.wait()


def answer(address: str) -> tuple[int, str]:
    """Return the status and the text that an address answers with."""
    try:
        with urllib.request.urlopen(address) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]
