"""The endpoints of the OpenAI dialect: how a body of each becomes a `Generation`."""

from __future__ import annotations

from radixserve.api.context import Api
from radixserve.api.handlers import Endpoint
from radixserve.api.openai import validate
from radixserve.api.openai.chat import ChatRenderer
from radixserve.api.openai.completions import CompletionRenderer
from radixserve.api.openai.prompts import chat_prompt, completion_prompts, ending_of
from radixserve.api.openai.wire import ChatBody, CompletionBody
from radixserve.front.generation import Generation


async def prepare_chat(api: Api, body: ChatBody) -> Generation:
    """Make all checks of a chat body, cheap ones first. Raises the refusal."""
    validate.check_model(body.model, api.model_names)
    validate.check_fields(body, api.settings, has_reasoning=api.tokenizer.has_reasoning)
    validate.check_chat(body, api.settings)
    ids = await chat_prompt(api, body, api.info())
    continues = ending_of(body) == "open"
    return validate.resolve(api, "chat", body, [(ids, "")], continues=continues)


async def prepare_completion(api: Api, body: CompletionBody) -> Generation:
    """Make all checks of a completion body, cheap ones first. Raises the refusal."""
    validate.check_model(body.model, api.model_names)
    validate.check_fields(body, api.settings, has_reasoning=api.tokenizer.has_reasoning)
    validate.check_completion(body, api.settings)
    prompts = await completion_prompts(api, body, api.info())
    return validate.resolve(api, "completions", body, prompts, continues=True)


CHAT = Endpoint("chat", ChatBody, prepare_chat, ChatRenderer)
COMPLETIONS = Endpoint("completions", CompletionBody, prepare_completion, CompletionRenderer)
