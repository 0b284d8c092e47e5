"""The Anthropic client: `pip install anthropic`."""

from anthropic import Anthropic
from pydantic import BaseModel

client = Anthropic(base_url="http://127.0.0.1:8000", api_key="none")
model = "SmolLM2-135M-Instruct"

question = {"role": "user", "content": "What is the capital of France?"}
message = client.messages.create(model=model, max_tokens=200, messages=[question])
print("chat:", message.content[0].text)

with client.messages.stream(model=model, max_tokens=200, messages=[question]) as stream:
    print("stream:", "|".join(stream.text_stream))

count = client.messages.count_tokens(model=model, messages=[question])
print("tokens:", count.input_tokens)

# Tools: the model asks for a function, the program calls it and sends the result.


def get_weather(city: str) -> str:
    return f"It is sunny in {city}."


tool = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
messages = [{"role": "user", "content": "What is the weather like in Paris?"}]
asked = client.messages.create(
    model=model,
    max_tokens=200,
    messages=messages,
    tools=[tool],
    tool_choice={"type": "tool", "name": "get_weather"},
)
use = next(block for block in asked.content if block.type == "tool_use")
print("call:", use.name, use.input)

result = {"type": "tool_result", "tool_use_id": use.id, "content": get_weather(**use.input)}
messages += [
    {"role": "assistant", "content": asked.content},
    {"role": "user", "content": [result]},
]
told = client.messages.create(
    model=model, max_tokens=40, messages=messages, tools=[tool], tool_choice={"type": "none"}
)
print("told:", told.content[0].text)

# Structured output: the answer is an object of a class.


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


parsed = client.messages.parse(
    model=model,
    max_tokens=200,
    system="Extract the event.",
    messages=[{"role": "user", "content": "Alice and Bob are going to a science fair on Friday."}],
    output_format=Event,
)
print("parsed:", repr(parsed.parsed_output))
