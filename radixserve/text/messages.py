"""The messages between the front and a tokenizer process, and their frames on the socket.

A frame holds one message: a length (4 bytes, big endian) and that many bytes of msgpack. Only the
types below exist on the wire: nothing is pickled. The front asks one question at a time and gets
one answer. Knows no sockets.
"""

from __future__ import annotations

import struct

import msgspec

from radixserve.request import Grammar
from radixserve.text.conversation import Conversation

# Extra time, beyond that of one request, for trying the tokenizer and its chat template at start.
TRY_SECONDS = 20.0
# The same for a grammar, whose trial ends by itself after its own time. On a busy machine the fork
# that tries it, which runs only when processors are idle, may take seconds to be gone.
CHECK_SECONDS = 6.0
MAX_FRAME_BYTES = 256 * 1024 * 1024
TAIL_CHARS = 64
LENGTH = struct.Struct(">I")
NOT_UNICODE = "the text is not valid Unicode (a lone surrogate?)"  # for the client
TOO_DEEP = "values in these messages or tools are nested too deeply"


class Start(msgspec.Struct, tag="start", frozen=True):
    """First message to a new process: load the tokenizer in this folder."""

    model: str
    load_seconds: float  # how long importing libraries and reading files may take
    render_seconds: float  # how long one request may take
    chat_template: str | None = None  # in place of the model's own
    allow_control_tokens: bool = False


class Encode(msgspec.Struct, tag="encode", frozen=True):
    """Tokenise a text."""

    text: str
    add_special_tokens: bool


class EncodeChat(msgspec.Struct, tag="encode_chat", frozen=True):
    """Render a conversation with the chat template and tokenise the result."""

    conversation: Conversation


class CheckGrammar(msgspec.Struct, tag="check_grammar", frozen=True):
    """Whether a grammar can be compiled over this tokenizer's tokens. The first trial is short."""

    grammar: Grammar
    is_first: bool = True


class Loaded(msgspec.Struct, tag="loaded", frozen=True):
    """The tokenizer's files are read; the chat template is tried next."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The process accepts questions from now on."""

    tokenizer: str  # JSON that `tokenizers.Tokenizer.from_str` reads
    chat_template: str | None  # that of conversations with tools, if the model has several
    has_tools: bool
    has_reasoning: bool
    drops_reasoning: bool
    eos_token_id: int | None  # ends a text, as the tokenizer's own configuration names it


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The model cannot be served; the sentence is for the operator."""

    message: str


class Encoded(msgspec.Struct, tag="encoded", frozen=True):
    """The token ids of a text or of a conversation."""

    ids: list[int]
    rendered_tail: str = ""
    """The last characters of the rendered conversation, at most `TAIL_CHARS`; "" for a text. They
    show what the prompt leaves open, such as a `<think>` in which the answer begins.
    """


class Checked(msgspec.Struct, tag="checked", frozen=True):
    """The grammar has passed, if it `is_done`. Otherwise the trial was too short: a first one may
    always be, a second one on a busy machine.
    """

    is_done: bool


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The request is refused; the sentence is for the client."""

    message: str
    param: str | None
    code: str | None


Question = Encode | EncodeChat | CheckGrammar
Answer = Encoded | Checked | Failed
ToWorker = Start | Question
ToFront = Loaded | Ready | Refused | Answer

_encoder = msgspec.msgpack.Encoder()


def encode(message: ToWorker | ToFront) -> bytes:
    """The frame of `message`."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def grammar_took_too_long(seconds: float) -> Failed:
    """The refusal of a grammar whose check took longer than `seconds`."""
    text = f"Compiling the grammar took longer than the limit of {seconds:g} s."
    return Failed(text, None, "grammar_too_complex")


def frame_length(header: bytes) -> int:
    """How many bytes of msgpack follow a frame's first four.

    Raises:
        ValueError: more than MAX_FRAME_BYTES, so the stream is not ours.
    """
    (length,) = LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return int(length)
