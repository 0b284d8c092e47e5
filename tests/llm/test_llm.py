"""`LLM` and `AsyncLLM` over the real engine process with the embedded model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from radixserve import (
    LLM,
    AsyncLLM,
    BadRequest,
    ConfigError,
    SamplingParams,
    StartupError,
    Unavailable,
)
from radixserve.assembly import Assembly
from radixserve.engine.counters import RUNNING
from radixserve.parsing.parts import Text

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "settings",
    [
        {"no_such_setting": 1},
        {"max_running": "many"},
        {"kv_budget": -1},
        {"kv_budget": "many"},
        {"kv_budget": "1GiB", "kv_share": 0.5},
        {"disk_path": "a", "cache": False},
        {"warm": "prompts.jsonl"},
    ],
)
def test_a_wrong_setting_is_refused_before_anything_starts(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LLM(**settings)  # type: ignore[arg-type]


def test_a_folder_that_is_no_store_is_refused_before_the_model_is_looked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(StartupError, match="no store of radixserve"):
        LLM(tmp_path / "no-model", disk_path=tmp_path)


async def test_an_engine_that_is_not_started_says_so() -> None:
    llm = AsyncLLM()
    with pytest.raises(StartupError, match="not started"):
        await llm.generate("a")
    await llm.close()


async def test_a_stream_that_is_never_read_asks_for_nothing() -> None:
    llm = AsyncLLM()
    llm.stream_generate("a")  # a coroutine that is never awaited would be a warning, so an error
    with pytest.raises(StartupError, match="not started"):
        await anext(llm.stream_generate("a"))


def test_parameters_become_the_fields_of_a_body() -> None:
    assert SamplingParams().fields() == {}
    params = SamplingParams(max_tokens=3, logit_bias={5: 1.0}, json=True)
    assert params.fields() == {
        "max_tokens": 3,
        "logit_bias": {"5": 1.0},
        "structured_outputs": {"json_object": True},
    }
    assert SamplingParams(json=CITY).fields() == {"structured_outputs": {"json": CITY}}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(kv_budget="256MiB") as loaded:
        yield loaded


@pytest.mark.model
def test_prompts_of_one_call_share_their_prefix(llm: LLM) -> None:
    text = "The following is a list of the capitals of European countries. " * 8
    prompts = [text + country for country in ("France:", "Italy:", "Spain:")]
    first = llm.generate(prompts[0], SamplingParams(max_tokens=4))
    outputs = llm.generate(prompts, SamplingParams(max_tokens=4), progress=True)
    assert [output.text for output in first] == [outputs[0].text]
    assert all(output.num_cached_tokens > 80 for output in outputs)
    assert all(output.completions[0].finish_reason == "length" for output in outputs)
    assert [len(output.completions[0].token_ids) for output in outputs] == [4, 4, 4]


@pytest.mark.model
def test_a_conversation_is_answered_in_the_form_that_is_asked_for(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    (output,) = llm.chat(messages)
    assert "Paris" in output.text
    outputs = llm.chat([messages, messages], SamplingParams(json=CITY, max_tokens=200, seed=1))
    assert outputs[0].text == outputs[1].text
    assert set(json.loads(outputs[0].text)) == {"city", "people"}


@pytest.mark.model
def test_a_tool_that_has_to_be_called_is_called(llm: LLM) -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": CITY}}
    messages = [{"role": "user", "content": "How many people live in Rome?"}]
    (output,) = llm.chat(messages, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    (call,) = output.tool_calls
    assert call.name == "find"
    assert set(json.loads(call.arguments)) == {"city", "people"}
    assert output.completions[0].finish_reason == "tool_calls"


@pytest.mark.model
def test_a_wrong_value_ends_its_call_only(llm: LLM) -> None:
    with pytest.raises(BadRequest, match="temperature") as refusal:
        llm.generate(["a", "b"], SamplingParams(temperature=9))
    assert refusal.value.param == "temperature"
    with pytest.raises(BadRequest, match="alien"):
        llm.chat([{"role": "alien", "content": "a"}])
    assert llm.chat([]) == []
    assert llm.generate("a", SamplingParams(max_tokens=1))[0].text


@pytest.mark.model
async def test_it_can_be_used_while_an_event_loop_runs_as_in_a_notebook(llm: LLM) -> None:
    assert asyncio.get_running_loop().is_running()
    assert llm.generate("a", SamplingParams(max_tokens=1))[0].text


@pytest.mark.model
def test_an_interrupt_ends_the_call_and_the_next_one_is_answered(llm: LLM) -> None:
    assembly = llm._llm._assembly
    assert assembly is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=_interrupt_while_it_runs, args=(assembly,))
    try:
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a", "b"], SamplingParams(max_tokens=8000, ignore_eos=True))
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)
    assert assembly.engine._streams.idle.is_set()
    assert llm.generate("a", SamplingParams(max_tokens=1))[0].text


def _interrupt_while_it_runs(assembly: Assembly) -> None:
    while assembly.engine.stats.value(RUNNING) == 0:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.model
@pytest.mark.slow
async def test_streams_add_up_and_can_be_left() -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    async with AsyncLLM() as llm:
        whole = await llm.chat(messages)
        deltas = [delta async for delta in llm.stream_chat(messages)]
        assert "".join(delta.text for delta in deltas) == whole.text
        assert all(isinstance(part, Text) for delta in deltas for part in delta.parts)
        async for _ in llm.stream_generate("Once", SamplingParams(max_tokens=1000)):
            break
        async with asyncio.timeout(30):
            again = await llm.chat(messages)
        assert again.text == whole.text
    with pytest.raises(Unavailable):
        await llm.chat(messages)
    await llm.close()


@pytest.mark.model
@pytest.mark.slow
def test_two_of_them_live_beside_each_other_and_what_is_closed_says_so(llm: LLM) -> None:
    text = "The capital of France is"
    (alone,) = llm.generate(text, SamplingParams(max_tokens=4))
    with LLM(fake_model=True) as other:
        (different,) = other.generate(text, SamplingParams(max_tokens=4))
        assert different.text != alone.text
        assert llm.generate(text, SamplingParams(max_tokens=4))[0].text == alone.text
    assert_is_closed(other)
    assert llm.generate(text, SamplingParams(max_tokens=4))[0].text == alone.text


def assert_is_closed(llm: LLM) -> None:
    llm.close()
    with pytest.raises(Unavailable, match="closed"):
        llm.generate("a")
    with pytest.raises(Unavailable, match="closed"):
        llm.chat([{"role": "user", "content": "a"}])


@pytest.mark.model
@pytest.mark.slow
def test_a_program_may_end_without_closing_it() -> None:
    code = """
from radixserve import LLM, SamplingParams
llm = LLM()
print(len(llm.generate("a", SamplingParams(max_tokens=2))[0].completions[0].token_ids))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240
    )
    assert (ended.stdout.strip(), ended.returncode) == ("2", 0)
    assert not any(word in ended.stderr for word in ("Traceback", "destroyed", "ignored"))
