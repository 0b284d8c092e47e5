"""The OpenAI Agents SDK: `pip install openai-agents`."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

set_default_openai_client(AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none"))
set_tracing_disabled(True)
model = "SmolLM2-135M-Instruct"


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    print("call:", "get_weather", city)
    return f"It is sunny in {city}."


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


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

    settings = ModelSettings(tool_choice="get_weather", max_tokens=40)
    agent = Agent(name="Reporter", model=model, tools=[get_weather], model_settings=settings)
    result = await Runner.run(agent, "What is the weather in Paris?")
    print("told:", result.final_output)

    agent = Agent(name="Extractor", model=model, output_type=Event)
    result = await Runner.run(agent, "Alice and Bob are going to a science fair on Friday.")
    print("parsed:", repr(result.final_output))


asyncio.run(main())
