"""LangChain: `pip install langchain-openai`."""

from langchain_openai import ChatOpenAI

chat = ChatOpenAI(
    base_url="http://127.0.0.1:8000/v1", api_key="none", model="SmolLM2-135M-Instruct"
)

question = "What is the capital of France?"
print("stream:", "|".join(part.text for part in chat.stream(question)))

answer = chat.invoke(question)
print("chat:", answer.content)
print("cached:", answer.usage_metadata["input_token_details"]["cache_read"])
