"""The OpenAI client: `pip install openai`."""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id

question = {"role": "user", "content": "What is the capital of France?"}
completion = client.chat.completions.create(model=model, messages=[question])
print("chat:", completion.choices[0].message.content)

stream = client.chat.completions.create(model=model, messages=[question], stream=True)
print("stream:", "|".join(chunk.choices[0].delta.content or "" for chunk in stream))

text = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4)
print("completion:", text.choices[0].text)
