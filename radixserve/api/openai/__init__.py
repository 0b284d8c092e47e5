"""The OpenAI dialect: its bodies, its answers and its stream events."""
