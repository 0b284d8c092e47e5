"""smolagents: `pip install 'smolagents[openai]'`."""

from smolagents import OpenAIModel, tool
from smolagents.models import ChatMessage, MessageRole

model = OpenAIModel("SmolLM2-135M-Instruct", api_base="http://127.0.0.1:8000/v1", api_key="none")
question = ChatMessage(role=MessageRole.USER, content="What is the capital of France?")

print("chat:", model.generate([question]).content)
parts = [part.content or "" for part in model.generate_stream([question])]
print("stream:", "|".join(parts))


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: The name of the city.
    """
    return f"It is sunny in {city}."


task = ChatMessage(role=MessageRole.USER, content="What is the weather in Paris?")
answer = model.generate([task], tools_to_call_from=[get_weather], parallel_tool_calls=False)
call = answer.tool_calls[0].function
print("call:", call.name, call.arguments)
