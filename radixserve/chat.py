"""`radixserve chat`: a conversation in the terminal with a running server.

A plain HTTP client of the public API: it reads the stream of server-sent events and shows the
answer as it arrives, then a summary of tokens and times. Knows nothing of the server's internals;
any OpenAI-compatible server works. Blocking I/O on purpose: Ctrl-C then interrupts the read itself,
and closing the connection is what stops the answer on the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.text import Text

_CONNECT_SECONDS = 10
_KEY_VARIABLE = "RADIXSERVE_API_KEY"  # not OpenAI's: that key must not reach another server
_READ_SECONDS = 600  # between two events; a long prompt on a slow machine takes a while
# A model may write escape sequences, which the terminal must not execute. Newline and tab pass.
_CONTROL_CHARS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_HELP = "/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer."


class ChatError(Exception):
    """The server cannot be reached, or refuses; the message is for the person at the terminal."""


@dataclass
class Answer:
    """The part of an answer that has arrived, with times by the client's clock (seconds since the
    request was sent).
    """

    text: str = ""
    num_parts: int = 0
    first_seconds: float | None = None
    last_seconds: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """Tokens and times of the answer, as far as known: after Ctrl-C the server has not sent its
        counts.
        """
        parts = []
        if self.usage:
            cached = (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            parts.append(f"{self.usage['prompt_tokens']} prompt tokens, {cached} cached")
        if self.first_seconds is not None:
            parts.append(f"TTFT {self.first_seconds * 1000:.0f} ms")
            num_tokens = self.usage.get("completion_tokens", self.num_parts)
            seconds = self.last_seconds - self.first_seconds
            if num_tokens > 1 and seconds > 0:
                parts.append(f"{(num_tokens - 1) / seconds:.1f} tokens/s")
        return " · ".join(parts)


class ChatServer:
    """A server at `url`, such as http://127.0.0.1:8000; a trailing /v1 is accepted."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ChatError(f"{url!r} is not an http:// or https:// address")
        self._url = url
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._parts = parts
        self._base = parts.path.rstrip("/").removesuffix("/v1")

    def first_model(self) -> str:
        """The name of the model it serves.

        Raises:
            ChatError: the server does not answer, or not with a list of models.
        """
        with self._request("GET", "/v1/models") as response:
            try:
                return str(json.load(response)["data"][0]["id"])
            except (ValueError, LookupError, TypeError) as error:
                raise ChatError(f"{self._url} does not answer as a model server") from error

    def answer(self, body: dict[str, Any], answer: Answer) -> Generator[str]:
        """Yield the text of a chat completion as it arrives, and fill `answer`.

        Raises:
            ChatError: the request was refused or failed, or the connection broke.
        """
        started = time.monotonic()
        with self._request("POST", "/v1/chat/completions", body) as response:
            for event in _events(response):
                if "error" in event:
                    raise ChatError(_error_message(event))
                answer.usage = event.get("usage") or answer.usage
                for choice in event.get("choices", ()):
                    if text := choice.get("delta", {}).get("content"):
                        answer.last_seconds = time.monotonic() - started
                        answer.first_seconds = answer.first_seconds or answer.last_seconds
                        answer.num_parts += 1
                        answer.text += text
                        yield text

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Generator[HTTPResponse]:
        connect = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        connection = connect(str(self._parts.hostname), self._parts.port, timeout=_CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(_READ_SECONDS)
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, self._base + path, payload, self._headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    raise ChatError(_refusal(response))
                yield response
        except ConnectionRefusedError as error:
            raise ChatError(
                f"no server answers at {self._url}; start one with: radixserve serve, "
                "or name the address of another with --url"
            ) from error
        except (OSError, HTTPException) as error:
            raise ChatError(
                f"the connection to {self._url} failed: {error or type(error).__name__}"
            ) from error
        finally:
            connection.close()


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event up to [DONE]."""
    for line in response:
        if line.startswith(b"data:"):
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            yield _event(data)
    raise ChatError("the server ended the answer before it was complete")


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise ChatError("the server sent an event that is not JSON")
    return event


def _refusal(response: HTTPResponse) -> str:
    try:
        return _error_message(json.load(response))
    except ValueError:
        return f"the server answers {response.status} {response.reason}"


def _error_message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "the server reports an error without a message")


class Conversation:
    """The conversation so far, and the settings of each request."""

    def __init__(self, system: str | None, settings: dict[str, Any]) -> None:
        self._system = system
        self._settings = settings
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def body(self, question: str) -> dict[str, Any]:
        """The request body that adds `question` to the conversation."""
        messages = [*self.messages, {"role": "user", "content": question}]
        return {
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._settings,
        }

    def add(self, question: str, answer: str) -> None:
        self.messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]


def _ask(server: ChatServer, conversation: Conversation, question: str, console: Console) -> bool:
    """Show one answer; False when the server refused or failed. The part that was shown before
    Ctrl-C is kept.
    """
    answer, note = Answer(), ""
    try:
        with contextlib.closing(server.answer(conversation.body(question), answer)) as texts:
            for text in texts:
                console.file.write(
                    text.translate(_CONTROL_CHARS)
                )  # rich would turn tabs into spaces
                console.file.flush()
    except KeyboardInterrupt:
        note = "stopped"
    except ChatError as error:
        _show(console, f"\n{error}" if answer.text else str(error), "red")
        return False
    if answer.text:
        conversation.add(question, answer.text)
    console.print()
    _show(console, " · ".join(filter(None, (note, answer.summary()))), "dim")
    return True


def _show(console: Console, message: str, style: str) -> None:
    console.print(Text(message.translate(_CONTROL_CHARS), style=style), soft_wrap=True)


def _read_line(console: Console) -> str | None:
    """The next line, "" after Ctrl-C, None at the end of the input; a prompt is shown only on a
    terminal.
    """
    try:
        return input("> " if sys.stdin.isatty() else "")
    except KeyboardInterrupt:
        console.print()
        return ""
    except EOFError:
        return None


def run_chat(
    url: str,
    model: str | None = None,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    api_key: str | None = None,
) -> int:
    """Chat until /quit or the end of the input; the exit status is 1 if the server failed.

    `model`: None for the first one that the server lists. Other settings that are None are left to
    the server.
    """
    console = Console(highlight=False)
    try:
        server = ChatServer(url, api_key)
        model = model or server.first_model()
    except ChatError as error:
        _show(console, str(error), "red")
        return 1
    settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    conversation = Conversation(
        system, {name: value for name, value in settings.items() if value is not None}
    )
    _show(console, f"{model} at {url}. {_HELP}", "dim")
    return _talk(server, conversation, console)


def _talk(server: ChatServer, conversation: Conversation, console: Console) -> int:
    status = 0
    while (line := _read_line(console)) is not None:
        question = line.strip()
        if question == "/quit":
            break
        if question == "/reset":
            conversation.reset()
            _show(console, "The conversation is forgotten.", "dim")
        elif question.startswith("/"):
            _show(console, _HELP, "dim")
        elif question:
            status = 0 if _ask(server, conversation, question, console) else 1
    return status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `radixserve chat`."""
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)"
    )
    parser.add_argument(
        "--key",
        "--api-key",
        dest="api_key",
        metavar="KEY",
        help=f"the server's key (default: {_KEY_VARIABLE})",
    )
    parser.add_argument("--model", help="model name (default: the first one the server lists)")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="longest answer in tokens (default: the server's)",
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy (default: the server's)"
    )


def main(args: argparse.Namespace) -> int:
    """Run with parsed arguments; returns the exit status."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history, where the platform has it
    key = args.api_key or os.environ.get(_KEY_VARIABLE)
    return run_chat(args.url, args.model, args.system, args.max_tokens, args.temperature, key)
