"""LiteLLM as a library: `pip install litellm`."""

import litellm
from pydantic import BaseModel

connection = {
    "model": "openai/SmolLM2-135M-Instruct",
    "api_base": "http://127.0.0.1:8000/v1",
    "api_key": "none",
}
messages = [{"role": "user", "content": "What is the capital of France?"}]

answer = litellm.completion(messages=messages, **connection)
print("chat:", answer.choices[0].message.content)

over_messages = litellm.completion(
    model="anthropic/SmolLM2-135M-Instruct",
    api_base="http://127.0.0.1:8000",
    api_key="none",
    messages=messages,
    max_tokens=200,
)
print("messages:", over_messages.choices[0].message.content)

response = litellm.responses(input="What is the capital of France?", **connection)
print("responses:", response.output[0].content[0].text)

stream = litellm.completion(messages=messages, stream=True, **connection)
print("stream:", "|".join(chunk.choices[0].delta.content or "" for chunk in stream))

weather = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
asked = litellm.completion(
    messages=[{"role": "user", "content": "What is the weather in Paris?"}],
    tools=[{"type": "function", "function": weather}],
    tool_choice={"type": "function", "function": {"name": "get_weather"}},
    **connection,
)
function = asked.choices[0].message.tool_calls[0].function
print("call:", function.name, function.arguments)


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


text = "Alice and Bob are going to a science fair on Friday."
parsed = litellm.completion(
    messages=[{"role": "user", "content": text}], response_format=Event, **connection
)
print("parsed:", repr(Event.model_validate_json(parsed.choices[0].message.content)))
