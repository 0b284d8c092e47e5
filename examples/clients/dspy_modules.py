"""DSPy: `pip install dspy`."""

import dspy

lm = dspy.LM(
    "openai/SmolLM2-135M-Instruct",
    api_base="http://127.0.0.1:8000/v1",
    api_key="none",
    cache=False,
)
dspy.configure(lm=lm)

print("chat:", lm("What is the capital of France?")[0])
