"""The grammar of a chat answer: the form that was asked for, the calls that it may or must have,
and the reasoning before them.

    tools     form       the answer is
    required  any        calls; the form has no say, because there is no text
    auto      none       text, then maybe calls, whose names and arguments are right
    auto      given      calls, or else text of that form
    none      given      text of that form
"""

from __future__ import annotations

from radixserve.api.context import Api
from radixserve.api.openai.form import Asked
from radixserve.api.openai.tools import Offer
from radixserve.errors import BadRequest
from radixserve.request import Grammar


def answer_grammar(
    api: Api, offer: Offer, asked: Asked | None, *, in_reasoning: bool
) -> Asked | None:
    """The grammar, and the field that refusals name; None: any text."""
    return asked


async def check_grammar(api: Api, param: str, grammar: Grammar) -> None:
    """Raises BadRequest that names `param` if the engine could not use `grammar`."""
    try:
        await api.tokenizer.check_grammar(grammar)
    except BadRequest as refusal:
        refusal.param = param
        raise
