"""Grammars are checked in tokenizer processes: the worst of them ends one process at its deadline,
and other requests go on.
"""

from __future__ import annotations

import asyncio
import json
from unittest.mock import AsyncMock

import pytest

from radixserve.checkpoints.embedded import embedded_model
from radixserve.errors import BadRequest
from radixserve.request import Grammar
from radixserve.text.client import TokenizerProcesses
from radixserve.text.messages import CheckGrammar, Start
from tests.grammar.accept import grammar
from tests.grammar.hostile import HOSTILE

pytestmark = pytest.mark.slow  # each starts processes

SECONDS = 8.0  # building the vocabulary is part of the first answer of each process


async def test_the_worst_grammars_are_refused_while_others_are_answered() -> None:
    start = Start(str(embedded_model(progress=False)), 60.0, SECONDS)
    processes = TokenizerProcesses(start, 2, 8, lambda: None)
    tokenizer = await processes.start()
    try:
        await tokenizer.check_grammar(grammar("json_object"))
        for name, bad in HOSTILE.items():
            checking = asyncio.create_task(processes.ask(CheckGrammar(bad)))
            while not checking.done():
                ids = await tokenizer.encode("hello there", add_special_tokens=False)
                assert tokenizer.decode(ids) == "hello there"
            error = checking.exception()
            assert isinstance(error, BadRequest), name
            assert error.code in ("grammar_too_complex", "invalid_value"), name
            await tokenizer.check_grammar(grammar("choice", ["a", "b"]))
    finally:
        await processes.close()


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


async def test_a_grammar_that_passed_is_not_asked_for_again_and_a_refused_one_is() -> None:
    start = Start(str(embedded_model(progress=False)), 60.0, 60.0)
    processes = TokenizerProcesses(start, 1, 8, lambda: None)
    tokenizer = await processes.start()
    good, bad = grammar("choice", ["a", "b"]), grammar("regex", "(")
    try:
        await tokenizer.check_grammar(good)
        with pytest.raises(BadRequest):
            await tokenizer.check_grammar(bad)
    finally:
        await processes.close()
    processes.ask = asked = AsyncMock()  # type: ignore[method-assign]
    await tokenizer.check_grammar(good)
    asked.assert_not_awaited()
    await tokenizer.check_grammar(bad)
    asked.assert_awaited_once_with(CheckGrammar(bad))
