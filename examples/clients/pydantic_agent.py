"""Pydantic AI: `pip install 'pydantic-ai-slim[openai,anthropic]'`."""

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = OpenAIChatModel("SmolLM2-135M-Instruct", provider=provider)
agent = Agent(model)

question = "What is the capital of France?"
print("chat:", agent.run_sync(question).output)

over_responses = OpenAIResponsesModel("SmolLM2-135M-Instruct", provider=provider)
print("responses:", Agent(over_responses).run_sync(question).output)

over_messages = AnthropicModel(
    "SmolLM2-135M-Instruct",
    provider=AnthropicProvider(base_url="http://127.0.0.1:8000", api_key="none"),
)
print("messages:", Agent(over_messages).run_sync(question).output)


async def stream() -> None:
    async with agent.run_stream(question) as answer:
        parts = [part async for part in answer.stream_text(delta=True, debounce_by=None)]
    print("stream:", "|".join(parts))


asyncio.run(stream())


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


text = "Alice and Bob are going to a science fair on Friday."
print("call:", repr(Agent(model, output_type=Event).run_sync(text).output))
print("parsed:", repr(Agent(model, output_type=NativeOutput(Event)).run_sync(text).output))
