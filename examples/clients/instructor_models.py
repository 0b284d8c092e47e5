"""instructor: `pip install instructor`."""

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


openai = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
question = {"role": "user", "content": "Alice and Bob are going to a science fair on Friday."}

client = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)
event = client.chat.completions.create(
    model="SmolLM2-135M-Instruct", response_model=Event, messages=[question]
)
print("parsed:", repr(event))

client = instructor.from_openai(openai)  # the schema goes as a tool
event = client.chat.completions.create(
    model="SmolLM2-135M-Instruct", response_model=Event, messages=[question]
)
print("call:", repr(event))
