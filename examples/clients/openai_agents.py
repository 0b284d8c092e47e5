"""The OpenAI Agents SDK: `pip install openai-agents`."""

import asyncio

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    Runner,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent

set_tracing_disabled(True)
client = AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = OpenAIChatCompletionsModel(model="SmolLM2-135M-Instruct", openai_client=client)


async def main() -> None:
    agent = Agent(name="Geographer", model=model)
    result = await Runner.run(agent, "What is the capital of France?")
    print("chat:", result.final_output)

    streamed = Runner.run_streamed(agent, "What is the capital of France?")
    parts = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]
    print("stream:", "|".join(parts))


asyncio.run(main())
