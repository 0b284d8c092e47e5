"""Frames and messages between front and engine."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixserve.config import Settings
from radixserve.engine.counters import PROMPT_TOKENS, RUNNING, STEP_SECONDS
from radixserve.messages import (
    MAX_FRAME_BYTES,
    Abort,
    FrameReader,
    Report,
    Start,
    ToEngine,
    ToFront,
    encode,
)
from radixserve.request import Request, Sampling
from radixserve.step import EngineStats, TokenEvent, TokenLogprob

MESSAGES: list[ToEngine] = [
    Start(Settings(), "some/folder"),
    Request(
        id="a",
        prompt_ids=[1, 2],
        sampling=Sampling(max_tokens=3, seed=2**63 - 1, logit_bias={5: -1.5}),
        output_ids=[7],
    ),
    Abort("a"),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.integers(1, 40))
def test_messages_survive_any_cut_of_the_stream(messages: list[ToEngine], size: int) -> None:
    stream = b"".join(encode(message) for message in messages)
    reader = FrameReader()
    bodies = [
        body for i in range(0, len(stream), size) for body in reader.feed(stream[i : i + size])
    ]
    assert [msgspec.msgpack.decode(body, type=ToEngine) for body in bodies] == messages


def test_a_report_comes_back_as_it_was() -> None:
    event = TokenEvent(
        request_id="a",
        token_ids=[1],
        logprobs=[TokenLogprob(1, -0.25, [(1, -0.25), (2, -3.0)])],
        num_cached=0,
    )
    report = Report(
        [event],
        EngineStats(
            numbers={RUNNING.key(): 3, PROMPT_TOKENS.key("disk"): 4},
            observed={STEP_SECONDS.key(): [0.5]},
        ),
    )
    (body,) = FrameReader().feed(encode(report))
    assert msgspec.msgpack.decode(body, type=ToFront) == report


def test_a_frame_beyond_the_limit_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(ValueError, match="exceeds the limit"):
        list(FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))
