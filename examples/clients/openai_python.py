"""The OpenAI client: `pip install openai`."""

import json

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id

question = {"role": "user", "content": "What is the capital of France?"}
completion = client.chat.completions.create(model=model, messages=[question])
print("chat:", completion.choices[0].message.content)

stream = client.chat.completions.create(model=model, messages=[question], stream=True)
print("stream:", "|".join(chunk.choices[0].delta.content or "" for chunk in stream))

text = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4)
print("completion:", text.choices[0].text)


# Tools: the model asks for a function, the program calls it and sends the result.


def get_weather(city: str) -> str:
    return f"It is sunny in {city}."


tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
messages = [{"role": "user", "content": "What is the weather like in Paris?"}]
asked = client.chat.completions.create(
    model=model,
    messages=messages,
    tools=[tool],
    tool_choice="required",
    parallel_tool_calls=False,
)
call = asked.choices[0].message.tool_calls[0]
print("call:", call.function.name, call.function.arguments)

result = get_weather(**json.loads(call.function.arguments))
messages += [
    asked.choices[0].message,
    {"role": "tool", "tool_call_id": call.id, "content": result},
]
told = client.chat.completions.create(
    model=model, messages=messages, tools=[tool], tool_choice="none", max_tokens=40
)
print("told:", told.choices[0].message.content)

# Structured output: the answer is an object of a class.


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


parsed = client.chat.completions.parse(
    model=model,
    messages=[
        {"role": "system", "content": "Extract the event."},
        {"role": "user", "content": "Alice and Bob are going to a science fair on Friday."},
    ],
    response_format=Event,
)
print("parsed:", repr(parsed.choices[0].message.parsed))
