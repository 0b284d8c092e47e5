"""The OpenAI client over the Responses API: `pip install openai`."""

import json

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id

question = "What is the capital of France?"
response = client.responses.create(model=model, input=question)
print("chat:", response.output_text)

parts = []
for event in client.responses.create(model=model, input=question, stream=True):
    if event.type == "response.output_text.delta":
        parts.append(event.delta)
print("stream:", "|".join(parts))

# Tools: the model asks for a function, the program calls it and sends the result.


def get_weather(city: str) -> str:
    return f"It is sunny in {city}."


tool = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
items = [{"role": "user", "content": "What is the weather like in Paris?"}]
response = client.responses.create(
    model=model,
    input=items,
    tools=[tool],
    tool_choice="required",
    parallel_tool_calls=False,
)
items += response.output
for item in response.output:
    if item.type == "function_call":
        print("call:", item.name, item.arguments)
        result = get_weather(**json.loads(item.arguments))
        items.append({"type": "function_call_output", "call_id": item.call_id, "output": result})
response = client.responses.create(
    model=model, input=items, tools=[tool], tool_choice="none", max_output_tokens=40
)
print("told:", response.output_text)

# Structured output: the answer is an object of a class.


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


response = client.responses.parse(
    model=model,
    instructions="Extract the event.",
    input="Alice and Bob are going to a science fair on Friday.",
    text_format=Event,
)
print("parsed:", repr(response.output_parsed))
