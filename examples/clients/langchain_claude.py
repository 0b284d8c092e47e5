"""LangChain over the Messages API: `pip install langchain-anthropic`."""

from langchain_anthropic import ChatAnthropic

chat = ChatAnthropic(
    base_url="http://127.0.0.1:8000", api_key="none", model="SmolLM2-135M-Instruct"
)

question = "What is the capital of France?"
print("stream:", "|".join(part.text for part in chat.stream(question)))

answer = chat.invoke(question)
print("chat:", answer.content)
print("cached:", answer.usage_metadata["input_token_details"]["cache_read"])


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


asked = chat.bind_tools([get_weather], tool_choice="get_weather").invoke(
    "What is the weather in Paris?"
)
print("call:", asked.tool_calls[0]["name"], asked.tool_calls[0]["args"])
