"""The server that a measurement starts: it is given out when its model is loaded, and stopped."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import pytest

from radixserve.loadtest.server import server
from radixserve.loadtest.target import CannotStart

SCRIPT = """
import http.server, sys
answers = [int(each) for each in ANSWERS]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/left":
            status, body = 200, str(len(answers)).encode()
        else:
            status, body = answers.pop(0), b""
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)
        if status == 500:
            sys.exit(3)

    def log_message(self, *arguments):
        pass

fake = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(f"fake listening on http://127.0.0.1:{fake.server_port}", flush=True)
fake.serve_forever()
"""


def command(folder: Path, *answers: int) -> list[str]:
    """A server that answers these statuses one after the other, and dies after a 500."""
    script = folder / "fake.py"
    script.write_text(SCRIPT.replace("ANSWERS", repr(answers)))
    return [sys.executable, str(script)]


def answers_left(url: str) -> int:
    with urllib.request.urlopen(f"{url}/left", timeout=10) as response:
        return int(response.read())


def test_a_server_is_given_out_once_its_model_is_loaded(tmp_path: Path) -> None:
    with server([], command(tmp_path, 503, 503, 200, 200)) as url:
        assert answers_left(url) == 1


def test_a_server_without_the_page_is_ready_when_it_listens(tmp_path: Path) -> None:
    with server([], command(tmp_path, 404, 404)) as url:
        assert answers_left(url) == 1


def test_a_server_that_ends_while_it_loads_cannot_be_measured(tmp_path: Path) -> None:
    with (
        pytest.raises(CannotStart, match="ended with code 3"),
        server([], command(tmp_path, 503, 500)),
    ):
        pass
