"""Pydantic AI: `pip install 'pydantic-ai-slim[openai]'`."""

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(
    "SmolLM2-135M-Instruct",
    provider=OpenAIProvider(base_url="http://127.0.0.1:8000/v1", api_key="none"),
)
agent = Agent(model)

print("chat:", agent.run_sync("What is the capital of France?").output)


async def stream() -> None:
    async with agent.run_stream("What is the capital of France?") as answer:
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
