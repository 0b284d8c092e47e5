"""A form behind reasoning, or instead of calls."""

from __future__ import annotations

import pytest

from radixserve.errors import BadRequest
from radixserve.grammar.answers import form_after
from radixserve.request import Grammar
from tests.grammar.accept import accepts, grammar, vocabulary

FORMS = {
    "{}": grammar("json_object"),
    "12": grammar("json_schema", {"type": "integer"}),
    "a/b": grammar("regex", r"a/b|\/c"),
    "/c": grammar("regex", r"a/b|\/c"),
    "[/]\\": grammar("regex", r"\[[/]\]\\"),
    "x\ny": grammar("regex", "x\ny"),
    "yes": grammar("choice", ["yes", "no"]),
}


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("marker", ["</think>", "</reason>"])
def test_a_form_comes_behind_reasoning(text: str, marker: str) -> None:
    control = {
        name: i for name, i in vocabulary().token_ids.items() if i in vocabulary().control_ids
    }
    wanted = form_after(FORMS[text], marker, control)
    assert accepts(wanted, f"Let me see: {text}{marker}\n\n{text}")
    assert accepts(wanted, f"{marker}{text}")
    assert not accepts(wanted, text)
    assert not accepts(wanted, f"{marker} so {text}")


@pytest.mark.parametrize("kind", ["lark", "gbnf"])
def test_a_grammar_with_rules_cannot_be_a_part(kind: str) -> None:
    with pytest.raises(BadRequest):
        form_after(Grammar(kind=kind, source='start: "a"'), "</think>", {})  # type: ignore[arg-type]
