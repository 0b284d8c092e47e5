"""LlamaIndex: `pip install llama-index-llms-openai-like`."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

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
