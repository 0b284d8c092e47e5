"""smolagents: `pip install 'smolagents[openai]'`."""

from smolagents import OpenAIModel
from smolagents.models import ChatMessage, MessageRole

model = OpenAIModel("SmolLM2-135M-Instruct", api_base="http://127.0.0.1:8000/v1", api_key="none")
question = ChatMessage(role=MessageRole.USER, content="What is the capital of France?")

print("chat:", model.generate([question]).content)
parts = [part.content or "" for part in model.generate_stream([question])]
print("stream:", "|".join(parts))
