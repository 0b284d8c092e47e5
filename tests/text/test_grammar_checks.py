"""Grammars are checked in tokenizer processes: the worst of them end in a refusal, other requests
go on, and no process has to be replaced.
"""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from radixserve.checkpoints.embedded import embedded_model
from radixserve.errors import BadRequest, Unavailable
from radixserve.request import Grammar
from radixserve.tenants import ASKING
from radixserve.text.client import TokenizerProcesses
from radixserve.text.grammar_checks import MAX_LONG, GrammarChecks
from radixserve.text.messages import Checked, CheckGrammar, Start
from tests.grammar.accept import grammar
from tests.grammar.hostile import HOSTILE

SECONDS = 8.0  # building the vocabulary is part of the first answer of each process


@pytest.mark.slow  # starts processes
async def test_the_worst_grammars_are_refused_while_others_are_answered() -> None:
    start = Start(str(embedded_model(progress=False)), 60.0, SECONDS)
    restarts: list[None] = []
    processes = TokenizerProcesses(start, 2, 8, lambda: restarts.append(None))
    tokenizer = await processes.start()
    try:
        await tokenizer.check_grammar(grammar("json_object"))
        for name, bad in HOSTILE.items():
            checking = asyncio.create_task(tokenizer.check_grammar(bad))
            while not checking.done():
                ids = await tokenizer.encode("hello there", add_special_tokens=False)
                assert tokenizer.decode(ids) == "hello there"
            error = checking.exception()
            assert isinstance(error, BadRequest | Unavailable), name
            codes = ("grammar_too_complex", "invalid_value", "server_is_overloaded")
            assert error.code in codes, name  # the last on a busy machine
            await tokenizer.check_grammar(grammar("choice", ["a", name]))
        assert not restarts
    finally:
        await processes.close()


@pytest.mark.slow  # starts processes
async def test_a_refusal_names_the_keyword() -> None:
    start = Start(str(embedded_model(progress=False)), 60.0, SECONDS)
    processes = TokenizerProcesses(start, 1, 8, lambda: None)
    tokenizer = await processes.start()
    try:
        schema = {"type": "object", "properties": {"a": {"uniqueItems": True}}}
        with pytest.raises(BadRequest) as refusal:
            await tokenizer.check_grammar(Grammar(kind="json_schema", source=json.dumps(schema)))
        assert "'uniqueItems' at #/properties/a" in refusal.value.message
        assert refusal.value.code == "unsupported_parameter"
        assert "<|im_end|>" in tokenizer.control_tokens
    finally:
        await processes.close()


class Trials:
    """Answers the questions about grammars: those in `long` take longer than a first trial, and
    then as long as `may_end` is not set; those in `bad` are refused. While it `is_busy`, a long
    trial does not get far.
    """

    def __init__(self, *, long: str = "", bad: str = "") -> None:
        self.is_busy = False
        self.asked: list[tuple[str, bool]] = []
        self.may_end = asyncio.Event()
        self._long, self._bad = long, bad

    async def ask(self, question: CheckGrammar) -> Checked:
        name = question.grammar.source
        self.asked.append((name, question.is_first))
        if name in self._long:
            if question.is_first:
                return Checked(is_done=False)
            await self.may_end.wait()
            if self.is_busy:
                return Checked(is_done=False)
        if name in self._bad:
            raise BadRequest(name)
        return Checked(is_done=True)


def named(name: str) -> Grammar:
    return Grammar(kind="regex", source=name)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_known_verdict_is_given_again_without_a_trial() -> None:
    trials = Trials(long="c", bad="bc")
    trials.may_end.set()
    checks = GrammarChecks(trials.ask)
    for _ in range(2):
        await checks.check(named("a"))
        for bad in "bc":
            with pytest.raises(BadRequest):
                await checks.check(named(bad))
    assert trials.asked == [("a", True), ("b", True), ("c", True), ("c", False)]


async def test_one_grammar_is_in_a_long_trial_and_short_ones_do_not_wait_for_it() -> None:
    trials = Trials(long="xy")
    checks = GrammarChecks(trials.ask)
    long = [asyncio.create_task(checks.check(named(each))) for each in "xyx"]
    await settled()
    await checks.check(named("a"))
    assert [name for name, is_first in trials.asked if not is_first] == ["x"]
    trials.may_end.set()
    await asyncio.gather(*long)
    assert [name for name, is_first in trials.asked if not is_first] == ["x", "y"], "x is known"


async def test_a_client_that_leaves_keeps_its_turn_until_the_trial_ends() -> None:
    logged: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    trials = Trials(long="xyz", bad="x")
    checks = GrammarChecks(trials.ask)
    first, second, third = (asyncio.create_task(checks.check(named(each))) for each in "xyz")
    await settled()
    for leaving in (first, second):
        leaving.cancel()
    await settled()
    assert ("z", False) not in trials.asked
    trials.may_end.set()
    await third
    assert ("y", False) not in trials.asked, "its client left before its turn"
    with pytest.raises(BadRequest):
        await checks.check(named("x"))
    del first, second, leaving
    gc.collect()
    assert not logged, "what a trial raised for nobody"


async def test_a_grammar_that_a_busy_machine_cannot_try_is_not_refused() -> None:
    trials = Trials(long="x")
    trials.may_end.set()
    checks = GrammarChecks(trials.ask)
    trials.is_busy = True
    with pytest.raises(Unavailable, match="too busy"):
        await checks.check(named("x"))
    trials.is_busy = False
    await checks.check(named("x"))


async def test_only_so_many_wait_for_a_long_trial() -> None:
    names = "abcdefghijklmnop"
    trials = Trials(long=names)
    checks = GrammarChecks(trials.ask)
    waiting = [asyncio.create_task(checks.check(named(each))) for each in names[: MAX_LONG + 1]]
    await settled()
    with pytest.raises(Unavailable):
        await checks.check(named("p"))
    trials.may_end.set()
    await asyncio.gather(*waiting)
    await checks.check(named("p"))


async def test_a_tenant_that_has_all_places_does_not_keep_others_out_nor_waiting() -> None:
    trials = Trials(long="abcdefghijz")
    checks = GrammarChecks(trials.ask)

    async def check(tenant: str, name: str) -> None:
        ASKING.set(tenant)
        await checks.check(named(name))

    flood = [asyncio.create_task(check("flood", each)) for each in "abcdefghij"]
    await settled()
    calm = asyncio.create_task(check("calm", "z"))
    await settled()
    trials.may_end.set()
    await asyncio.gather(*flood, calm, return_exceptions=True)
    assert calm.exception() is None
    assert [isinstance(each.exception(), Unavailable) for each in flood] == [False] * 9 + [True]
    order = [name for name, is_first in trials.asked if not is_first]
    assert order.index("z") <= 2, order
