"""LangChain: `pip install langchain-openai`."""

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

chat = ChatOpenAI(
    base_url="http://127.0.0.1:8000/v1", api_key="none", model="SmolLM2-135M-Instruct"
)

question = "What is the capital of France?"
print("stream:", "|".join(part.text for part in chat.stream(question)))

answer = chat.invoke(question)
print("chat:", answer.content)
print("cached:", answer.usage_metadata["input_token_details"]["cache_read"])

over_responses = ChatOpenAI(
    base_url="http://127.0.0.1:8000/v1",
    api_key="none",
    model="SmolLM2-135M-Instruct",
    use_responses_api=True,
)
print("responses:", over_responses.invoke(question).text)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


asked = chat.bind_tools([get_weather], tool_choice="get_weather").invoke(
    "What is the weather in Paris?"
)
print("call:", asked.tool_calls[0]["name"], asked.tool_calls[0]["args"])


class Event(BaseModel):
    """Something that happens on a day."""

    name: str
    day: str
    participants: list[str]


text = "Alice and Bob are going to a science fair on Friday."
print("parsed:", repr(chat.with_structured_output(Event).invoke(text)))
