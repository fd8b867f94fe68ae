"""A stand-in for the Hugging Face Hub, which no test can reach: the few calls that a push makes, on this machine.

It keeps what it is sent, and says no when it is told to. It is no substitute for a push to the Hub itself.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What the server has and has seen.

    Attributes:
        url: Its address.
        repos: Visibility of each repository.
        files: What is committed, by repository and path.
        blobs: Large files that were uploaded, by sha256.
        commits: Messages, by repository.
        requests: Method and path of all calls.
        tokens: The Authorization headers that were seen.
        refuse: A part of a path at which it fails, saying the token back.
    """

    url: str = ""
    repos: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    refuse: str | None = None

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return the status and what is said."""
        parts = path.partition("?")[0].strip("/").split("/")
        match [method, *parts]:
            case ["POST", "api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name in self.repos:
                    return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
                self.repos[name] = asked.get("visibility", "public")
                self.files[name], self.commits[name] = {".gitattributes": b""}, []
                return 200, {"url": f"{self.url}/{name}"}
            case ["POST", "api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["GET", "api", "models", user, name]:
                private = self.repos[f"{user}/{name}"] == "private"
                return 200, {"id": f"{user}/{name}", "private": private, "sha": "0" * 40}
            case ["GET", "api", "models", user, name, "tree", *_]:
                return 200, [
                    {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                    for path, content in self.files[f"{user}/{name}"].items()
                ]
            case ["POST", "api", "models", _, _, "preupload", "main"]:
                return 200, {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                objects = json.loads(body)["objects"]
                return 200, {"transfer": "basic", "objects": [self._place(each) for each in objects]}
            case ["PUT", "blobs", sha256]:
                self.blobs[sha256] = body
                return 200, {}
            case ["POST", "api", "models", user, name, "commit", "main"]:
                return 200, self._commit(f"{user}/{name}", [json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"no such call: {method} {path}"}

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Say where a large file goes; nowhere if it is here."""
        if asked["oid"] in self.blobs:
            return asked
        return {**asked, "actions": {"upload": {"href": f"{self.url}/blobs/{asked['oid']}", "header": {}}}}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    self.commits[repo].append(value["summary"])
                case "file":
                    self.files[repo][value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    self.files[repo][value["path"]] = self.blobs[value["oid"]]
        oid = f"{len(self.commits[repo]):040d}"
        return {"success": True, "commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid}


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a free port for the length of a `with`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self._body()
            hub.requests.append((self.command, self.path))
            if self.path.startswith(("/api/models/", "/api/repos/", "/me/")):
                hub.tokens.add(self.headers["Authorization"])
            if hub.refuse is not None and hub.refuse in self.path:
                said = (403, {"error": f"not allowed with {self.headers['Authorization']}"})
            else:
                said = hub.answer(self.command, self.path, body)
            content = json.dumps(said[1]).encode()
            self.send_response(said[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _handle

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
