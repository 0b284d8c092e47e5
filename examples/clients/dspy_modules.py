"""DSPy: `pip install dspy`."""

import dspy
from dspy.lm15 import (
    AccessPolicy,
    ModelSupport,
    OpenAIChatCompat,
    ProviderDefinition,
    register_provider,
)
from pydantic import BaseModel

access = AccessPolicy(provider="radixserve", base_url="http://127.0.0.1:8000/v1")
register_provider(
    ProviderDefinition.chat(access, compat=OpenAIChatCompat(), placeholder_key="none"),
    supports=ModelSupport(function_calling=True, response_schema=True),
)
lm = dspy.LM("radixserve/SmolLM2-135M-Instruct", cache=False)
dspy.configure(lm=lm, adapter=dspy.JSONAdapter())

print("chat:", lm("What is the capital of France?")[0])


class Event(BaseModel):
    name: str
    day: str
    participants: list[str]


class Extract(dspy.Signature):
    """Extract the event."""

    text: str = dspy.InputField()
    event: Event = dspy.OutputField()


text = "Alice and Bob are going to a science fair on Friday."
print("parsed:", repr(dspy.Predict(Extract)(text=text).event))


def get_weather(city: str) -> str:
    """The weather in a city."""
    print("call: get_weather", city)
    return f"It is sunny in {city}."


agent = dspy.ReActV2("question -> answer", tools=[get_weather], max_iters=3)
agent.react.config["tool_choice"] = "required"  # so small a model would call nothing by itself
print("told:", agent(question="What is the weather in Paris?").answer)
