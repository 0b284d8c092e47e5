"""Tokenizer processes: whatever a chat template or a text does, others go on and all can end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from radixserve.errors import BadRequest, ModelRefused, StartupError, Unavailable
from radixserve.tenants import ASKING
from radixserve.text import client, worker_process
from radixserve.text.client import ProcessTokenizer, TokenizerProcesses
from radixserve.text.conversation import Conversation
from radixserve.text.messages import (
    Answer,
    EncodeChat,
    Ready,
    Start,
    encode,
    frame_length,
)
from radixserve.text.worker_process import WorkerProcess
from tests.fakes import byte_tokenizer

pytestmark = pytest.mark.slow  # each starts processes

SECONDS = 1.0
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATE = (
    "{% for m in messages %}<turn>{% if 'loop' in m.content %}" + LOOP + "{% endif %}"
    "{% if 'eat' in m.content %}{{ 'a' * (2 * 10**9) }}{% endif %}"
    "{% if 'grow' in m.content %}{{ 'a' * 10**8 }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The byte tokenizer with a template that obeys its messages."""
    folder = tmp_path_factory.mktemp("bytes")
    loaded = byte_tokenizer().tokenizer._loaded
    loaded.chat_template = TEMPLATE
    loaded.save_pretrained(folder)
    return folder


def said(text: str) -> Conversation:
    return Conversation([{"role": "user", "content": text}])


class Pool:
    """Running processes, and how often one was replaced."""

    def __init__(self, start: Start, number: int = 1, max_waiting: int = 8) -> None:
        self.restarts = 0
        self.processes = TokenizerProcesses(start, number, max_waiting, self._count)
        self.tokenizer: ProcessTokenizer

    def _count(self) -> None:
        self.restarts += 1

    async def chat(self, text: str) -> list[int]:
        return (await self.tokenizer.encode_chat(said(text))).ids


@asynccontextmanager
async def pool(folder: Path, number: int = 1, **options: Any) -> AsyncIterator[Pool]:
    start = Start(str(folder), 60.0, options.pop("seconds", SECONDS), **options)
    running = Pool(start, number)
    try:
        running.tokenizer = await running.processes.start()
        yield running
    finally:
        began = time.monotonic()
        await running.processes.close()
        assert time.monotonic() - began < 1, "closing waits for nothing"


def ids_of(text: str) -> list[int]:
    """What the byte tokenizer gives for a message."""
    return [257, *f"user: {text}\n".encode()]


def pids() -> list[int]:
    """Of the tokenizer processes that this process has started."""
    listed = subprocess.run(
        ["ps", "-wwo", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    lines = [line.split() for line in listed.stdout.splitlines()]
    return [int(line[0]) for line in lines if "radixserve.text.worker" in line]


async def test_text_and_messages_become_ids_and_ids_text(folder: Path) -> None:
    async with pool(folder) as running:
        tokenizer = running.tokenizer
        assert await running.chat("hé") == ids_of("hé")
        assert await tokenizer.encode("hé", add_special_tokens=True) == list("hé".encode())
        assert tokenizer.decode(ids_of("hé"), skip_special_tokens=False) == "<turn>user: hé\n"
        assert (tokenizer.vocab_size, tokenizer.has_chat_template) == (258, True)
        assert await running.chat("<turn>") == ids_of("<turn>")
    assert pids() == []


async def test_settings_reach_the_process(folder: Path) -> None:
    template = "{{ messages[0].content }}!"
    async with pool(folder, chat_template=template, allow_control_tokens=True) as running:
        assert await running.chat("<turn>") == [257, ord("!")]


async def test_facts_about_the_template_reach_the_front(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool(folder) as running:
        assert running.tokenizer.chat_template == TEMPLATE
        assert not running.tokenizer.has_tools
        assert not running.tokenizer.drops_reasoning
    assert caplog.text.count("no place for tools") == 1
    caplog.clear()
    last = "{% if loop.last %}{{ m.reasoning_content }}{% endif %}"
    template = "{{ tools }}{% for m in messages %}" + last + "{{ m.content }}{% endfor %}<think>"
    async with pool(folder, chat_template=template) as running:
        assert running.tokenizer.has_tools
        assert running.tokenizer.drops_reasoning
        answer = await running.tokenizer.encode_chat(said("x" * 99))
        assert answer.rendered_tail == "x" * 57 + "<think>"
    assert caplog.text == ""


@pytest.mark.parametrize("value", [10**30, -(10**30), "deep", "\ud800"])
async def test_what_cannot_be_sent_is_refused(folder: Path, value: Any) -> None:
    if value == "deep":
        value = []
        for _ in range(100_000):
            value = [value]
    asked = msgspec.structs.replace(said("hi"), options={"value": value})
    async with pool(folder) as running:
        with pytest.raises(BadRequest) as refusal:
            await running.tokenizer.encode_chat(asked)
        assert (refusal.value.param, refusal.value.code) == ("messages", "invalid_value")
        assert await running.chat("hi") == ids_of("hi")
        assert running.restarts == 0


async def test_refusals_are_told_and_the_process_lives(folder: Path) -> None:
    template = "{{ raise_exception('no') if messages[0].content == 'x' else '' }}<turn>"
    async with pool(folder, chat_template=template) as running:
        for _ in range(3):
            with pytest.raises(BadRequest, match="refuses these messages: no") as refusal:
                await running.chat("x")
            assert refusal.value.param == "messages"
        with pytest.raises(BadRequest, match="not valid Unicode") as refusal:
            await running.chat("\ud800")
        assert refusal.value.param == "messages"
        assert await running.chat("y") == [257]
        assert running.restarts == 0


async def test_a_template_that_loops_ends_its_request_and_no_other(folder: Path) -> None:
    async with pool(folder, number=2) as running:
        looping = [asyncio.create_task(running.chat("loop")) for _ in range(3)]
        others = [asyncio.create_task(running.chat(f"fine {n}")) for n in range(4)]
        for task in looping:
            with pytest.raises(BadRequest) as refusal:
                await task
            assert refusal.value.message == (
                "Rendering these messages with the model's chat template and tokenising them took "
                "longer than the limit of 1 s."
            )
            assert (refusal.value.param, refusal.value.code) == ("messages", "render_timeout")
        assert [await task for task in others] == [ids_of(f"fine {n}") for n in range(4)]
        assert running.restarts == 3


async def test_a_client_that_leaves_frees_its_place_and_the_process(folder: Path) -> None:
    async with pool(folder) as running:
        leaving = asyncio.create_task(running.chat("loop"))
        await asyncio.sleep(0.2)
        leaving.cancel()
        assert await running.chat("next") == ids_of("next")
        assert running.processes.places.num_taken == 0


@pytest.mark.parametrize("text", ["eat", "grow"])
async def test_the_memory_of_one_request_is_bounded(folder: Path, text: str) -> None:
    async with pool(folder, seconds=20.0) as running:
        with pytest.raises(BadRequest) as refusal:
            await running.chat(text)
        assert refusal.value.param == "messages"
        assert await running.chat("next") == ids_of("next")


async def test_a_killed_process_costs_no_request(folder: Path) -> None:
    async with pool(folder, seconds=20.0) as running:
        [pid] = pids()
        os.kill(pid, signal.SIGSTOP)
        asked = [asyncio.create_task(running.chat(f"{n}")) for n in range(3)]
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        assert [await task for task in asked] == [ids_of(f"{n}") for n in range(3)]
        assert running.restarts == 1


async def test_a_process_that_ended_while_it_was_idle_is_no_try_of_a_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[WorkerProcess] = []
    start = WorkerProcess.start

    async def start_and_note(self: WorkerProcess, first: Start) -> Ready:
        workers.append(self)
        return await start(self, first)

    monkeypatch.setattr(WorkerProcess, "start", start_and_note)
    monkeypatch.setattr(client, "_MAX_TRIES", 1)
    async with pool(folder, seconds=20.0) as running:
        [pid] = pids()
        os.kill(pid, signal.SIGKILL)
        while workers[0].pid is not None:
            await asyncio.sleep(0.01)
        assert await running.chat("next") == ids_of("next")
        assert running.restarts == 1


async def test_a_text_that_ends_two_processes_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = WorkerProcess.ask

    async def ask_and_kill(self: WorkerProcess, question: bytes, seconds: float) -> Answer:
        if b"deadly" in question:
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)
        return await ask(self, question, seconds)

    monkeypatch.setattr(WorkerProcess, "ask", ask_and_kill)
    async with pool(folder, seconds=20.0) as running:
        with pytest.raises(BadRequest, match=r"was ended by SIGKILL, two times") as refusal:
            await running.chat("deadly")
        assert (refusal.value.param, refusal.value.code) == ("messages", "render_failed")
        assert await running.chat("next") == ids_of("next")
        assert running.restarts == 2


async def test_too_many_that_wait_are_refused(folder: Path) -> None:
    async with pool(folder, seconds=3.0) as running:
        waiting = [asyncio.create_task(running.chat("loop"))]
        waiting += [asyncio.create_task(running.chat("x")) for _ in range(7)]
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable, match="Too many prompts"):
            await running.chat("one more")
        for task in waiting:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.wait(waiting)


async def test_a_tenant_that_floods_leaves_places_and_turns_to_others(folder: Path) -> None:
    async with pool(folder) as running:
        served: list[str] = []

        async def ask(tenant: str) -> None:
            ASKING.set(tenant)
            await running.chat("x")
            served.append(tenant)

        waiting = [asyncio.create_task(ask(each)) for each in (*["flood"] * 8, "calm")]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Too many prompts"):
            await asyncio.create_task(ask("flood"))
        await asyncio.gather(*waiting)
        assert served.index("calm") <= 2


async def test_who_waits_when_all_ends_is_told(folder: Path) -> None:
    async with pool(folder, seconds=20.0) as running:
        waiting = [asyncio.create_task(running.chat(text)) for text in ("loop", "x")]
        await asyncio.sleep(0.3)
    for task in waiting:
        with pytest.raises(Unavailable, match="shutting down"):
            await task


async def test_no_process_in_time_is_unavailable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_WAIT_SECONDS", 0.1)
    async with pool(folder) as running:
        [pid] = pids()
        monkeypatch.setattr(worker_process, "_COMMAND", ("/bin/false",))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="No tokenizer process is free"):
            await running.chat("x")


def explosive(folder: Path) -> Path:
    """A tokenizer whose regular expression takes exponential time on many `a` and a `!`."""
    backend = tokenizers.Tokenizer.from_str(byte_tokenizer().tokenizer.to_json())
    pattern = tokenizers.Regex("^(?:a|a|aa)+$")
    split = pre_tokenizers.Split(pattern, "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    backend.save(str(folder / "tokenizer.json"))
    return folder


async def test_a_regular_expression_that_explodes_is_a_refusal(tmp_path: Path) -> None:
    async with pool(explosive(tmp_path), seconds=5.0) as running:
        with pytest.raises(BadRequest) as refusal:
            await running.tokenizer.encode("a" * 4000 + "!", add_special_tokens=False)
        assert "okenis" in refusal.value.message or "tokenizer failed" in refusal.value.message
        assert await running.tokenizer.encode("ab", add_special_tokens=False) == [97, 98]


async def test_a_long_text_passes(folder: Path) -> None:
    text = "A long and honest prompt. " * 40_000
    async with pool(folder, seconds=60.0) as running:
        assert await running.chat(text) == ids_of(text)
        spelled = text + "<turn>"
        assert await running.chat(spelled) == ids_of(spelled)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LOOP, r"^trying the model's chat template and tokenizer took longer than 9 s$"),
        ("{% if %}", "^the chat template does not compile: "),
    ],
)
async def test_a_template_that_cannot_be_served_refuses_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, template: str, expected: str
) -> None:
    monkeypatch.setattr(worker_process, "TRY_SECONDS", 8.0)
    with pytest.raises(ModelRefused, match=expected):
        async with pool(folder, chat_template=template):
            pass
    assert pids() == []


@pytest.mark.parametrize(
    ("template", "refusal"),
    [
        ("{{ 'a' * (2 * 10**9) }}", r"cannot render these messages \(MemoryError\)$"),
        ("{{ 'a' * 10**9 }}", "chat template (makes|cannot render)"),
        ("{{ 'a' * 10**8 }}", "makes 100000000 characters of these messages, more than the limit"),
    ],
)
async def test_a_template_that_eats_memory_for_every_message_serves_completions(
    folder: Path, template: str, refusal: str
) -> None:
    async with pool(folder, chat_template=template, seconds=20.0) as running:
        with pytest.raises(BadRequest, match=refusal):
            await running.chat("x")
        assert await running.tokenizer.encode("a", add_special_tokens=False) == [97]


async def test_loading_has_a_deadline(folder: Path) -> None:
    running = Pool(Start(str(folder), 0.01, SECONDS))
    with pytest.raises(ModelRefused, match=r"^loading the tokenizer took longer than 0\.01 s$"):
        await running.processes.start()
    assert pids() == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("/bin/false",), r"^the tokenizer process ended with exit code 1 while it started$"),
        (("/bin/sh", "-c", "kill -9 $$"), r"^the tokenizer process was ended by SIGKILL while"),
        (("/no/such/program",), r"^the tokenizer process .*No such file.* while it started$"),
    ],
)
async def test_a_process_that_dies_while_it_starts_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(worker_process, "_COMMAND", command)
    with pytest.raises(StartupError, match=expected) as refusal:
        await Pool(Start(str(folder), 60.0, SECONDS)).processes.start()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("asked", ["loop", None])
def test_a_process_does_not_outlive_the_front(folder: Path, asked: str | None) -> None:
    """The front may be killed at any time: at rest the socket's end tells, otherwise an alarm."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "radixserve.text.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
    with ours:
        ours.sendall(encode(Start(str(folder), 60.0, 0.1)))
        stream = ours.makefile("rb")
        for _ in ("loaded", "ready"):
            stream.read(frame_length(stream.read(4)))
        if asked is not None:
            ours.sendall(encode(EncodeChat(said(asked))))
        stream.close()
    assert process.wait(60) == (0 if asked is None else -signal.SIGALRM)


def test_frames_that_are_not_ours_are_refused() -> None:
    with pytest.raises(ValueError, match="exceeds the limit"):
        frame_length(b"HTTP")
    frame = encode(EncodeChat(said("hi")))
    assert frame_length(frame[:4]) == len(frame) - 4
