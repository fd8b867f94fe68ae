"""The waiting page: answers the port of the app while the libraries and the model are loaded."""

import errno
import os
import socket
import threading
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import cast

from erasure.errors import InputError

_PORTS = range(7860, 7960)
_TEMPLATE = (Path(__file__).parent / "waiting.html").read_text(encoding="utf-8")


class WaitingPage:
    """Server of a page that says what is being loaded, and that opens the app as soon as it answers.

    Args:
        port: Port of the app; None is the first free one from 7860.
        on_stage: Receives each stage of the start.

    Attributes:
        host: Name or address that the app listens on.
        port: Port of the app.
        stage: Stage of the start.

    Raises:
        InputError: The port is taken, or may not be used.
    """

    def __init__(self, port: int | None = None, on_stage: Callable[[str], None] = lambda stage: None) -> None:
        self.host = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"  # as Gradio reads it, for containers
        self.stage = "starting"
        self._on_stage = on_stage
        self._server = _bound(self.host, port, self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Address of the app."""
        return f"http://{'localhost' if self.host == '0.0.0.0' else self.host}:{self.port}/"

    def say(self, stage: str) -> None:
        """Show a stage of the start."""
        self.stage = stage
        self._on_stage(stage)

    def close(self) -> None:
        """Stop the server, so that the app can take its port."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "WaitingPage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, page: WaitingPage) -> None:
        self.page = page
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host.strip("[]"), port), _Answer)


class _Answer(BaseHTTPRequestHandler):
    """Answer to every request: 503 with the page; a program is told to come back later."""

    timeout = 10

    def do_GET(self) -> None:
        content = _TEMPLATE.replace("STAGE", escape(cast("_Server", self.server).page.stage)).encode()
        self.send_response(503, "Loading")
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Retry-After", "5"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Log nothing."""


def _bound(host: str, port: int | None, page: WaitingPage) -> _Server:
    start = os.environ.get("GRADIO_SERVER_PORT")
    ports = [port] if port is not None else [int(start)] if start and start.isdigit() else _PORTS
    for number in ports:
        try:
            return _Server(host, number, page)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise InputError(
                    f"app: expected an address of this machine, got {host!r}. Mend GRADIO_SERVER_NAME."
                ) from error
    got = repr(port) if port is not None else f"none from {ports[0]} to {ports[-1]}"
    raise InputError(f"app: expected a free port, got {got}. Give another by --port.")
