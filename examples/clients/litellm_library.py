"""LiteLLM as a library: `pip install litellm`."""

import litellm

connection = {
    "model": "openai/SmolLM2-135M-Instruct",
    "api_base": "http://127.0.0.1:8000/v1",
    "api_key": "none",
}
messages = [{"role": "user", "content": "What is the capital of France?"}]

answer = litellm.completion(messages=messages, **connection)
print("chat:", answer.choices[0].message.content)

stream = litellm.completion(messages=messages, stream=True, **connection)
print("stream:", "|".join(chunk.choices[0].delta.content or "" for chunk in stream))
