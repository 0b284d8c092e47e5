"""The endpoints of the OpenAI dialect: how a body of each becomes a `Generation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from radixserve.api.adapters import adapter_named
from radixserve.api.context import Api
from radixserve.api.handlers import Endpoint
from radixserve.api.openai import validate
from radixserve.api.openai.chat import ChatRenderer
from radixserve.api.openai.completions import CompletionRenderer
from radixserve.api.openai.form import form_of
from radixserve.api.openai.grammar import answer_grammar, check_grammar
from radixserve.api.openai.infill import infill_of, infill_prompts
from radixserve.api.openai.pin_marks import Mark, marks_of, ttl_of_options, wish_pins
from radixserve.api.openai.prompts import (
    bad_words_of,
    chat_prompt,
    completion_prompts,
    conversation_of,
)
from radixserve.api.openai.resolve import AnswerForm, resolve
from radixserve.api.openai.tools import Offer, offered_tools
from radixserve.api.openai.wire import ChatBody, CompletionBody
from radixserve.front.generation import Generation
from radixserve.parsing.formats import parser
from radixserve.parsing.tool import Tool
from radixserve.text.conversation import Conversation


async def prepare_chat(
    api: Api, body: ChatBody, *, fewest_tokens: int = 1, marks: Sequence[Mark] = ()
) -> Generation:
    """Make all checks of a chat body, cheap ones first. Raises the refusal. `fewest_tokens` is the
    lowest `max_tokens`; with 0 tokens the prompt alone is computed. `marks` are those of the body
    that it was translated from.
    """
    adapter_named(api, body.model)
    validate.check_fields(body, api.settings)
    validate.check_chat(body, api.settings, fewest_tokens=fewest_tokens)
    marks = [*marks, *marks_of(body)]
    offer, asked = offered_tools(body), form_of(body)
    conversation = conversation_of(body, offer.shown)
    encoded = await chat_prompt(api, conversation, api.info())
    form = _chat_form(api, body, conversation, offer, encoded.rendered_tail)
    grammar = await answer_grammar(api, offer, asked, in_reasoning=form.in_reasoning)
    form = replace(form, grammar=grammar, bad_words=await bad_words_of(api, body))
    generation = resolve(api, "chat", body, [(encoded.ids, "")], form)
    generation.conversation = conversation
    await wish_pins(api, generation, body, marks)
    return generation


def _chat_form(
    api: Api, body: ChatBody, conversation: Conversation, offer: Offer, tail: str
) -> AnswerForm:
    """How the answer to a prompt that ends with `tail` is read."""
    formats, tools = api.formats, offer.callable
    reasoning = None if body.separate_reasoning is False else formats.reasoning
    in_reasoning = (
        reasoning is not None and conversation.ending == "answer" and reasoning.opened_by(tail)
    )
    new_parser = partial(
        parser,
        formats.tools if tools else None,
        [Tool(each.name, each.parameters or {}) for each in tools],
        reasoning=reasoning,
        starts_in_reasoning=in_reasoning,
    )
    return AnswerForm(
        continues=conversation.ending == "open",
        new_parser=new_parser if tools or reasoning else None,
        in_reasoning=in_reasoning,
        shown_tokens=formats.shown_tokens(api.tokenizer, with_tools=bool(tools)),
        ends=formats.end_tokens(api.tokenizer) if tools else (),
    )


async def prepare_completion(api: Api, body: CompletionBody) -> Generation:
    """Make all checks of a completion body, cheap ones first. Raises the refusal."""
    adapter_named(api, body.model)
    validate.check_fields(body, api.settings)
    validate.check_completion(body, api.settings)
    ttl_of_options(body)
    asked, infill = form_of(body), infill_of(api, body)
    if infill is None:
        prompts = await completion_prompts(api, body, api.info())
    else:
        prompts = await infill_prompts(api, body, infill, api.info())
    if asked is not None:
        await check_grammar(api, *asked)
    form = AnswerForm(
        continues=True,
        grammar=asked[1] if asked is not None else None,
        ends=infill.ends if infill is not None else (),
        bad_words=await bad_words_of(api, body),
    )
    generation = resolve(api, "completions", body, prompts, form)
    await wish_pins(api, generation, body)
    return generation


CHAT = Endpoint("chat", ChatBody, prepare_chat, ChatRenderer)
COMPLETIONS = Endpoint("completions", CompletionBody, prepare_completion, CompletionRenderer)
