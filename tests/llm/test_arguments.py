"""`LLM` and `AsyncLLM` over a fake engine: wrong arguments, many prompts, forks, failed starts."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from radixserve import LLM, AsyncLLM, BadRequest, SamplingParams, StartupError, Unavailable
from radixserve.api.context import Api
from radixserve.api.settings import ApiSettings
from radixserve.config import Settings
from radixserve.llm import async_llm
from radixserve.metrics import Metrics
from radixserve.request import Request
from tests.fakes import FakeEngine, byte_tokenizer, repeat_prompt

QUESTION = [{"role": "user", "content": "abc"}]
FOUR = SamplingParams(max_tokens=4)
STRANGE = ...  # no JSON; printed without an address, so that tests keep their names


class FakeAssembly:
    """What `AsyncLLM` needs of an `Assembly`, over a `FakeEngine`."""

    made: list[FakeAssembly]
    fails = False

    def __init__(self, settings: Settings, *_: object) -> None:
        self.settings = settings
        self.made.append(self)
        self.is_closed = False

    async def start(self) -> Api:
        self.engine = FakeEngine()
        self.loading = asyncio.create_task(self._load())
        return Api.of(self.engine, byte_tokenizer(), Metrics("m"), ApiSettings(), ("m",))

    async def _load(self) -> None:
        if self.fails:
            raise StartupError("no model")

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def assembly(monkeypatch: pytest.MonkeyPatch) -> type[FakeAssembly]:
    class Own(FakeAssembly):
        made = []

    monkeypatch.setattr(async_llm, "Assembly", Own)
    monkeypatch.setattr(async_llm, "find", lambda settings: SimpleNamespace())
    return Own


@pytest.fixture
def llm(assembly: type[FakeAssembly]) -> Iterator[LLM]:
    with LLM() as loaded:
        yield loaded


def nested() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


PROMPTS: list[tuple[Any, str]] = [
    (None, "prompts"),
    (5, "prompts"),
    (b"ab", "prompts"),
    ({"a": 1}, "prompts"),
    ({"a"}, "prompts"),
    ([5], "prompt"),
    ([1, 2, 3], "prompt"),
    ([None], "prompt"),
    ([[True]], "prompt[0]"),
    ([[1.5]], "prompt[0]"),
    (["\ud800"], "prompt"),
]


@pytest.mark.parametrize(("prompts", "named"), PROMPTS, ids=repr)
def test_a_wrong_prompt_is_refused_by_name(llm: LLM, prompts: Any, named: str) -> None:
    refused(lambda: llm.generate(prompts, FOUR), named)
    assert_still_answers(llm)


CONVERSATIONS: list[tuple[Any, str]] = [
    (None, "conversations"),
    (5, "conversations"),
    ("hello", "conversations"),
    (QUESTION[0], "conversations"),
    ([None], "messages"),
    ([5], "messages"),
    (["hello"], "messages"),
    ([[5]], "messages[0]"),
    ([[{5: "user"}]], "messages[0]"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": STRANGE}], "messages[0].content"),
]


@pytest.mark.parametrize(("conversations", "named"), CONVERSATIONS, ids=repr)
def test_a_wrong_conversation_is_refused_by_name(llm: LLM, conversations: Any, named: str) -> None:
    refused(lambda: llm.chat(conversations, FOUR), named)
    assert_still_answers(llm)


PARAMS: list[tuple[Any, str]] = [
    ({"max_tokens": 2}, "params"),
    ("x", "params"),
    ([FOUR], "params"),
    (5, "params"),
    (SamplingParams(max_tokens="x"), "max_tokens"),  # type: ignore[arg-type]
    (SamplingParams(logit_bias=5), "logit_bias"),  # type: ignore[arg-type]
    (SamplingParams(logit_bias={5: "x"}), "logit_bias[...]"),  # type: ignore[dict-item]
    (SamplingParams(stop=5), "stop"),  # type: ignore[arg-type]
    (SamplingParams(json=5), "structured_outputs.json"),  # type: ignore[arg-type]
    (SamplingParams(json={"enum": [STRANGE]}), "structured_outputs"),
    (SamplingParams(json={"enum": nested()}), "structured_outputs"),
    (SamplingParams(temperature=float("nan")), "temperature"),
]


@pytest.mark.parametrize(("params", "named"), PARAMS, ids=repr)
def test_wrong_parameters_are_refused_by_name(llm: LLM, params: Any, named: str) -> None:
    refused(lambda: llm.generate("abc", params), named)
    refused(lambda: llm.chat(QUESTION, params), named)
    assert_still_answers(llm)


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"no_such_field": 1}, "no_such_field"),
    ({"tools": 5}, "tools"),
    ({"tools": [STRANGE]}, "tools[0]"),
    ({"chat_template_kwargs": {"a": STRANGE}}, "chat_template_kwargs"),
    ({"messages": QUESTION}, "messages"),
    ({"stream": True}, "stream"),
]


@pytest.mark.parametrize(("fields", "named"), FIELDS, ids=repr)
def test_a_wrong_field_is_refused_by_name(llm: LLM, fields: dict[str, Any], named: str) -> None:
    refused(lambda: llm.chat(QUESTION, FOUR, **fields), named)
    assert_still_answers(llm)


def refused(call: Callable[[], Any], named: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        call()
    assert refusal.value.param == named
    assert named in str(refusal.value)


def assert_still_answers(llm: LLM) -> None:
    assert [output.text for output in llm.generate(["abc"], FOUR)] == ["abca"]


def test_prompts_and_conversations_may_come_from_any_iterator(llm: LLM) -> None:
    assert [each.text for each in llm.generate((each for each in ("abc", "de")), FOUR)] == [  # type: ignore[arg-type]
        "abca",
        "dede",
    ]
    (one,) = llm.chat(iter(QUESTION), FOUR)  # type: ignore[arg-type]
    assert llm.chat([tuple(QUESTION), QUESTION], FOUR) == [one, one]


def test_500_prompts_of_one_call_are_answered_in_order_and_64_at_a_time(
    llm: LLM, assembly: type[FakeAssembly]
) -> None:
    (made,) = assembly.made
    at_once = []

    def answer(request: Request) -> Any:
        at_once.append(len(made.engine.live))
        return repeat_prompt(request)

    made.engine.answer = answer
    outputs = llm.generate([f"{i:03}" for i in range(500)], SamplingParams(max_tokens=3))
    assert [output.text for output in outputs] == [f"{i:03}" for i in range(500)]
    assert max(at_once) == 64
    assert made.engine.live == {}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_make_its_own(llm: LLM) -> None:
    child = multiprocessing.get_context("fork").Process(target=use_in_a_fork, args=(llm,))
    child.start()
    child.join(20)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0
    assert_still_answers(llm)


def use_in_a_fork(llm: LLM) -> None:
    for call in (lambda: llm.generate("a"), lambda: llm.chat(QUESTION)):
        with pytest.raises(Unavailable, match="forked"):
            call()
    llm.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_process_leaves_the_processes_of_its_parent_alone(
    assembly: type[FakeAssembly],
) -> None:
    async with AsyncLLM() as llm:
        child = multiprocessing.get_context("fork").Process(target=run_in_a_fork, args=(llm,))
        child.start()
        await asyncio.to_thread(child.join, 20)
        if child.exitcode is None:
            child.kill()
        assert child.exitcode == 0
        assert (await llm.generate("abc", FOUR)).text == "abca"


def run_in_a_fork(llm: AsyncLLM) -> None:
    async def use() -> None:
        with pytest.raises(Unavailable, match="forked"):
            await llm.generate("a")
        await llm.close()
        assert not llm._assembly.is_closed  # type: ignore[union-attr]

    asyncio.set_event_loop(None)
    asyncio.events._set_running_loop(None)
    asyncio.run(use())


async def test_a_start_that_failed_may_be_tried_again_and_a_closed_one_stays_closed(
    assembly: type[FakeAssembly], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = AsyncLLM()
    monkeypatch.setattr(assembly, "fails", True)
    for _ in range(2):
        with pytest.raises(StartupError, match="no model"):
            await llm.start()
    assert [made.is_closed for made in assembly.made] == [True, True]
    monkeypatch.setattr(assembly, "fails", False)
    await llm.start()
    assert (await llm.generate("abc", FOUR)).text == "abca"
    for _ in range(2):
        with pytest.raises(StartupError, match="started already"):
            await llm.start()
        await llm.close()
    assert len(assembly.made) == 3


@pytest.mark.parametrize(
    ("given", "mode"), [({}, "off"), ({"spare_engine": "auto"}, "auto")], ids=str
)
async def test_a_script_has_no_spare_engine_unless_it_asks_for_one(
    given: dict[str, Any], mode: str, assembly: type[FakeAssembly]
) -> None:
    async with AsyncLLM(**given):
        assert [each.settings.spare_engine for each in assembly.made] == [mode]


async def test_two_starts_at_once_start_one(assembly: type[FakeAssembly]) -> None:
    llm = AsyncLLM()
    results = await asyncio.gather(llm.start(), llm.start(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), StartupError]
    assert len(assembly.made) == 1
    await llm.close()


def test_another_event_loop_is_told_so(assembly: type[FakeAssembly]) -> None:
    llm = AsyncLLM()
    asyncio.run(llm.start())
    with pytest.raises(Unavailable, match="event loop"):
        asyncio.run(llm.generate("a"))
    asyncio.run(llm.close())
