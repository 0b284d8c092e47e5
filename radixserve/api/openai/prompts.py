"""Turns the prompt or messages of a body into token ids: cheap checks first, then the tokenizer in
its own processes.

Owns the accepted shapes of `prompt`. Knows no engine beyond the sizes in `EngineInfo`.
"""

from __future__ import annotations

from functools import partial

from radixserve.api.context import Api
from radixserve.api.openai.messages import render_messages
from radixserve.api.openai.validate import check_prompt_chars, check_token_ids
from radixserve.api.openai.wire import ChatBody, CompletionBody, TokenizeBody
from radixserve.api.refusals import too_many
from radixserve.errors import BadRequest
from radixserve.step import EngineInfo
from radixserve.text.conversation import Conversation, Ending


async def chat_prompt(api: Api, body: ChatBody | TokenizeBody, info: EngineInfo) -> list[int]:
    """The token ids of the conversation.

    Raises BadRequest for bad messages, a model without chat template, or a text that
    cannot fit.
    """
    messages, ending = body.messages or [], ending_of(body)
    if not api.tokenizer.has_chat_template:
        text = "This model has no chat template; use /v1/completions."
        raise BadRequest(text, param="messages", code="unsupported_parameter")
    rendered = render_messages(messages)
    if len(rendered) > info.context_length:  # messages without text take time to render, too
        text = f"{len(rendered)} messages cannot fit the context of {info.context_length} tokens."
        raise BadRequest(text, param="messages", code="context_length_exceeded")
    rendered = api.volatile.removed(rendered)
    num_chars = sum(len(message["content"]) for message in rendered)
    check_prompt_chars(num_chars, info, api.settings, "messages")
    conversation = Conversation(messages=rendered, ending=ending)
    ids = (await api.tokenizer.encode_chat(conversation)).ids
    _check_encoded(ids, info, "messages")
    return ids


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
    given = body.prompt
    if isinstance(given, str):
        return [await text_prompt(api, given, info)]
    if not given:
        raise BadRequest("'prompt' must not be an empty list.", param="prompt", code="empty_array")
    if all(isinstance(item, int) for item in given):
        ids = [item for item in given if isinstance(item, int)]
        return [await _id_prompt(api, ids, info, "prompt", bool(body.echo))]
    if len(given) > api.settings.max_prompts:
        raise too_many("prompt", api.settings.max_prompts)
    texts = [item for item in given if isinstance(item, str)]
    if len(texts) == len(given):
        return [await text_prompt(api, text, info, f"prompt[{i}]") for i, text in enumerate(texts)]
    lists = [item for item in given if isinstance(item, list)]
    if len(lists) == len(given):
        return [
            await _id_prompt(api, ids, info, f"prompt[{i}]", bool(body.echo))
            for i, ids in enumerate(lists)
        ]
    raise BadRequest(
        "'prompt' must not mix strings, token ids and lists.", param="prompt", code="invalid_type"
    )


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
    _check_encoded(ids, info, param)
    return ids, text


def _check_encoded(ids: list[int], info: EngineInfo, param: str) -> None:
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
