"""smolagents: `pip install 'smolagents[openai]'`."""

from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessage, MessageRole

model = OpenAIModel("SmolLM2-135M-Instruct", api_base="http://127.0.0.1:8000/v1", api_key="none")
question = ChatMessage(role=MessageRole.USER, content="What is the capital of France?")

print("chat:", model.generate([question]).content)
parts = [part.content or "" for part in model.generate_stream([question])]
print("stream:", "|".join(parts))


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: The name of the city.
    """
    return f"It is sunny in {city}."


task = ChatMessage(role=MessageRole.USER, content="What is the weather in Paris?")
answer = model.generate([task], tools_to_call_from=[get_weather], parallel_tool_calls=False)
call = answer.tool_calls[0].function
print("call:", call.name, call.arguments)

# Agents. The embedded model is too small to plan, so every step is told which tool to call.


def named(tool: str) -> dict:
    return {"tool_choice": {"type": "function", "function": {"name": tool}}}


model.kwargs |= {"max_tokens": 60, "parallel_tool_calls": False, **named("get_weather")}
agent = ToolCallingAgent(
    tools=[get_weather],
    model=model,
    max_steps=2,
    step_callbacks=[lambda step: model.kwargs.update(named("final_answer"))],
)
print("agent:", agent.run("What is the weather in Paris?"))

# It is too small to write Python, too: the answer's form leaves it the city.
code = r'<code>\nfinal_answer\(get_weather\("[A-Z][a-z]{2,10}"\)\)\n</code>'
model = OpenAIModel(
    "SmolLM2-135M-Instruct",
    api_base="http://127.0.0.1:8000/v1",
    api_key="none",
    extra_body={"structured_outputs": {"regex": code}},
)
agent = CodeAgent(tools=[get_weather], model=model, max_steps=2)
print("code:", agent.run("What is the weather in Paris?"))
