"""Turns the prompt or messages of a body into token ids: cheap checks first, then the tokenizer in
its own processes.

Owns the accepted shapes of `prompt`. Knows no engine beyond the sizes in `EngineInfo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from radixserve.api.context import Api
from radixserve.api.openai.messages import render_messages
from radixserve.api.openai.validate import check_prompt_chars, check_token_ids
from radixserve.api.openai.wire import ChatBody, CompletionBody, GenerationBody, TokenizeBody
from radixserve.api.refusals import shown, too_many
from radixserve.errors import BadRequest
from radixserve.step import EngineInfo
from radixserve.text.conversation import Conversation, Ending, client_strings

if TYPE_CHECKING:
    from radixserve.text.messages import Encoded

# The server gives these to the template itself.
_NO_OPTIONS = frozenset(
    (
        *("messages", "conversation", "tools", "documents", "chat_template", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "tokenizer_kwargs", "padding"),
        *("truncation", "max_length", "return_tensors", "return_dict"),
        "return_assistant_tokens_mask",
    )
)


async def chat_prompt(api: Api, conversation: Conversation, info: EngineInfo) -> Encoded:
    """The token ids of a conversation, and how its text ends.

    Raises BadRequest for a model without chat template, or a text that cannot fit.
    """
    if not api.tokenizer.has_chat_template:
        text = "This model has no chat template; use /v1/completions."
        raise BadRequest(text, param="messages", code="unsupported_parameter")
    num_messages = len(conversation.messages)
    if num_messages > info.context_length:  # messages without text take time to render, too
        text = f"{num_messages} messages cannot fit the context of {info.context_length} tokens."
        raise BadRequest(text, param="messages", code="context_length_exceeded")
    messages = api.volatile.removed(conversation.messages)
    conversation = msgspec.structs.replace(conversation, messages=messages)
    num_chars = sum(map(len, _strings(conversation)))
    check_prompt_chars(num_chars, info, api.settings, "messages")
    encoded = await api.tokenizer.encode_chat(conversation)
    check_encoded(encoded.ids, info, "messages")
    return encoded


def _strings(conversation: Conversation) -> list[str]:
    try:
        return client_strings(conversation)
    except RecursionError:
        text = "The messages or tools are nested too deeply."
        raise BadRequest(text, param="messages", code="invalid_value") from None


def conversation_of(
    body: ChatBody | TokenizeBody, tools: Sequence[dict[str, Any]] = ()
) -> Conversation:
    """The conversation of a body that offers `tools`. Raises BadRequest for bad messages, or for
    fields that contradict each other.
    """
    options: dict[str, Any] = {}
    documents: list[dict[str, Any]] = []
    if isinstance(body, ChatBody):
        options, documents = _options(body), body.documents or []
    return Conversation(
        messages=render_messages(body.messages or []),
        tools=list(tools),
        options=options,
        documents=documents,
        ending=ending_of(body),
        add_special_tokens=bool(body.add_special_tokens),
    )


def _options(body: ChatBody) -> dict[str, Any]:
    """The variables for the template. `reasoning_effort` "none" also switches thinking off in
    templates that know only that switch.
    """
    options = dict(body.chat_template_kwargs or {})
    for name in options:
        if name in _NO_OPTIONS or not name.isidentifier():
            where = f"chat_template_kwargs.{shown(name)}"
            raise BadRequest(
                f"'{shown(name)}' cannot be given to the chat template.",
                param=where,
                code="invalid_value",
            )
    if body.reasoning_effort is not None:
        options.setdefault("reasoning_effort", body.reasoning_effort)
        if body.reasoning_effort == "none":
            options.setdefault("enable_thinking", False)
    return options


def ending_of(body: ChatBody | TokenizeBody) -> Ending:
    """Where the prompt ends. Raises BadRequest if the two fields contradict each other."""
    if not body.continue_final_message:
        return "closed" if body.add_generation_prompt is False else "answer"
    if body.add_generation_prompt:
        message = "'continue_final_message' and 'add_generation_prompt' exclude each other."
        raise BadRequest(message, param="continue_final_message", code="invalid_value")
    return "open"


Prompt = tuple[list[int], str]
"""Token ids, and the text that `echo` repeats."""


async def completion_prompts(api: Api, body: CompletionBody, info: EngineInfo) -> list[Prompt]:
    """The prompts of the body, in order."""
    given, add = body.prompt, body.add_special_tokens is not False
    if isinstance(given, str):
        return [await text_prompt(api, given, info, add_special_tokens=add)]
    if not given:
        raise BadRequest("'prompt' must not be an empty list.", param="prompt", code="empty_array")
    if all(isinstance(item, int) for item in given):
        ids = [item for item in given if isinstance(item, int)]
        return [await _id_prompt(api, ids, info, "prompt", bool(body.echo))]
    if len(given) > api.settings.max_prompts:
        raise too_many("prompt", api.settings.max_prompts)
    texts = [item for item in given if isinstance(item, str)]
    if len(texts) == len(given):
        return [
            await text_prompt(api, text, info, f"prompt[{i}]", add_special_tokens=add)
            for i, text in enumerate(texts)
        ]
    lists = [item for item in given if isinstance(item, list)]
    if len(lists) == len(given):
        return [
            await _id_prompt(api, ids, info, f"prompt[{i}]", bool(body.echo))
            for i, ids in enumerate(lists)
        ]
    raise BadRequest(
        "'prompt' must not mix strings, token ids and lists.", param="prompt", code="invalid_type"
    )


async def bad_words_of(api: Api, body: GenerationBody) -> tuple[tuple[int, ...], ...]:
    """The tokens of each bad word, at the beginning of a text and behind a space. Raises BadRequest
    for an empty word and for too many.
    """
    words = body.bad_words or ()
    if len(words) > api.settings.max_bad_words:
        raise too_many("bad_words", api.settings.max_bad_words)
    found: dict[tuple[int, ...], None] = {}
    for i, word in enumerate(words):
        if not 0 < len(word) <= api.settings.max_stop_chars:
            text = f"A bad word must have 1 to {api.settings.max_stop_chars} characters."
            raise BadRequest(text, param=f"bad_words[{i}]", code="invalid_value")
        for spelled in (word, f" {word}"):
            found[tuple(await api.tokenizer.encode(spelled, add_special_tokens=False))] = None
    return tuple(ids for ids in found if ids)


async def text_prompt(
    api: Api, text: str, info: EngineInfo, param: str = "prompt", *, add_special_tokens: bool = True
) -> Prompt:
    """Raises BadRequest when the text cannot fit the context, or gives no token at all."""
    check_prompt_chars(len(text), info, api.settings, param)
    try:
        ids = await api.tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except BadRequest as refusal:
        refusal.param = param
        raise
    check_encoded(ids, info, param)
    return ids, text


def check_encoded(ids: list[int], info: EngineInfo, param: str) -> None:
    """Raises BadRequest for an empty list, or for ids without an embedding: a tokenizer may know
    more tokens than the model, and such an id would fail a whole step.
    """
    if not ids:
        raise BadRequest("The prompt must not be empty.", param=param, code="invalid_value")
    if max(ids) >= info.vocab_size:
        text = (
            f"The text has token {max(ids)}, which the model does not know ({info.vocab_size} "
            "tokens)."
        )
        raise BadRequest(text, param=param, code="invalid_value")


async def _id_prompt(api: Api, ids: list[int], info: EngineInfo, param: str, echo: bool) -> Prompt:
    if not ids:
        raise BadRequest("The prompt must not be empty.", param=param, code="empty_array")
    check_token_ids(ids, info.vocab_size, param)
    if not echo or len(ids) > info.context_length:
        return ids, ""
    decode = partial(api.tokenizer.decode, ids, skip_special_tokens=False)
    return ids, await api.threads.run(decode)
