"""The main program of a tokenizer process. It loads the tokenizer, then answers one question after
another until the front closes the socket: it renders conversations, tokenises texts, and tries
grammars in forks of itself.

`worker_process` starts it as `python -m radixserve.text.worker FD`, where FD is its end of a Unix
socket pair; the first message is `Start`. The front kills it if an answer takes too long. If the
front is gone, the operating system does so a little later (an alarm without a handler). The
operating system also limits the memory that one answer may take.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
import socket
import sys
from functools import lru_cache, partial
from typing import BinaryIO

import msgspec

from radixserve import grammar
from radixserve.errors import BadRequest, ModelRefused
from radixserve.text.grammar_trial import try_grammar
from radixserve.text.messages import (
    CHECK_SECONDS,
    LENGTH,
    TRY_SECONDS,
    Answer,
    CheckGrammar,
    Encode,
    Encoded,
    Failed,
    Loaded,
    Question,
    Ready,
    Refused,
    Start,
    ToFront,
    ToWorker,
    encode,
    frame_length,
)
from radixserve.text.tokenizer import Tokenizer, load_files

# Memory that answering one question may take; a text of 4 MiB takes half of it.
ANSWER_BYTES = 1 << 30
_ALARM_AFTER_SECONDS = 2.0  # after the deadline, so that the front kills first


class Channel:
    """This process's end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream: BinaryIO = sock.makefile("rb")
        self._decoder = msgspec.msgpack.Decoder(ToWorker)

    def receive(self) -> ToWorker:
        """Wait for the next message. Raises EOFError if the front is gone."""
        header = self._stream.read(LENGTH.size)
        if len(header) < LENGTH.size:
            raise EOFError
        message: ToWorker = self._decoder.decode(self._stream.read(frame_length(header)))
        return message

    def send(self, message: ToFront) -> None:
        """Send a message; blocks until the front has read most of it. Raises OSError if the front
        is gone.
        """
        self._sock.sendall(encode(message))


def main() -> int:
    """Run the process. Returns its exit code: 0 if the front left, 2 if it refused the model."""
    # Ctrl-C reaches the whole process group; the front decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(EOFError, OSError):
        return _serve(channel)
    return 0


def _serve(channel: Channel) -> int:
    start = channel.receive()
    assert isinstance(start, Start), f"the first message must be Start, not {type(start).__name__}"
    alarm_seconds = start.render_seconds + CHECK_SECONDS + _ALARM_AFTER_SECONDS
    try:
        loaded = load_files(start.model)
        channel.send(Loaded())
        _limit_memory()
        signal.setitimer(signal.ITIMER_REAL, alarm_seconds + TRY_SECONDS)
        tokenizer = Tokenizer(
            loaded,
            chat_template=start.chat_template,
            allow_control_tokens=start.allow_control_tokens,
        )
    except ModelRefused as refusal:
        channel.send(Refused(str(refusal)))
        return 2
    channel.send(_ready(tokenizer))
    while True:
        signal.setitimer(signal.ITIMER_REAL, 0)
        question = channel.receive()
        assert not isinstance(question, Start), "Start comes once"
        signal.setitimer(signal.ITIMER_REAL, alarm_seconds)
        channel.send(_answer(tokenizer, question, start.render_seconds))


def _ready(tokenizer: Tokenizer) -> Ready:
    return Ready(
        tokenizer.to_json(),
        chat_template=tokenizer.template.text,
        has_tools=tokenizer.facts.has_tools,
        has_reasoning=tokenizer.template.has_reasoning,
        drops_reasoning=tokenizer.facts.drops_reasoning,
        eos_token_id=tokenizer.eos_token_id,
    )


def _answer(tokenizer: Tokenizer, question: Question, seconds: float) -> Answer:
    try:
        if isinstance(question, Encode):
            add = question.add_special_tokens
            return Encoded(tokenizer.encode(question.text, add_special_tokens=add))
        if isinstance(question, CheckGrammar):
            check = partial(grammar.check, question.grammar, _vocabulary(tokenizer))
            return try_grammar(check, seconds, is_first=question.is_first)
        return tokenizer.encode_chat(question.conversation)
    except BadRequest as refusal:
        return Failed(refusal.message, refusal.param, refusal.code)


@lru_cache(maxsize=1)
def _vocabulary(tokenizer: Tokenizer) -> grammar.Vocabulary:
    vocabulary = grammar.Vocabulary(tokenizer.to_json())
    gc.freeze()  # what is here now is shared with forks, as long as nobody writes to it
    return vocabulary


def _limit_memory() -> None:
    """Allow ANSWER_BYTES of address space beyond what is in use now."""
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = in_use + ANSWER_BYTES
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    sys.exit(main())
