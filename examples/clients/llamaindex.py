"""LlamaIndex: `pip install llama-index-llms-openai-like`."""

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

llm = OpenAILike(
    api_base="http://127.0.0.1:8000/v1",
    api_key="none",
    model="SmolLM2-135M-Instruct",
    context_window=8192,
    is_chat_model=True,
    is_function_calling_model=True,
    temperature=0,
)

question = ChatMessage(role="user", content="What is the capital of France?")
print("chat:", llm.chat([question]).message.content)
print("stream:", "|".join(part.delta for part in llm.stream_chat([question])))


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


tool = FunctionTool.from_defaults(get_weather)
asked = llm.predict_and_call([tool], "What is the weather in Paris?", tool_required=True)
print("call:", asked.sources[0].tool_name, asked.sources[0].raw_input["kwargs"])


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


text = "Alice and Bob are going to a science fair on Friday."
structured = llm.as_structured_llm(Event)
print("parsed:", repr(structured.complete(text).raw))
