"""From the text that a model writes to typed parts: answer text, reasoning and tool calls.

Stands between the text of an answer and the API dialects. Knows no HTTP, no dialect and no engine.
"""
