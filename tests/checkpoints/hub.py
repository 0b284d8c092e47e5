"""A hub with one model, for `huggingface_hub` over HTTP on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "org/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "model.safetensors": b"weights",
    "consolidated.safetensors": b"the same weights",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"words",
}


class _Handler(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if f"/{NAME}/resolve/" in path and name in FILES:
            self._send(200, FILES[name], with_body)
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            tree = [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in FILES.items()]
            self._send(200, json.dumps(tree).encode(), with_body)
        elif path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
            files = [{"rfilename": name} for name in FILES]
            facts = {"id": NAME, "sha": COMMIT, "siblings": files}
            self._send(200, json.dumps(facts).encode(), with_body)
        elif path.startswith(f"/api/models/{NAME}/revision/"):
            self._send(404, b"{}", with_body, code="RevisionNotFound")
        elif path.startswith("/api/models/org/gated"):
            self._send(403, b"{}", with_body, code="GatedRepo")
        else:
            self._send(404, b"{}", with_body, code="RepoNotFound")

    def _send(self, status: int, data: bytes, with_body: bool, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[str]:
    """The address of a hub that answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
