"""Turns generated text into typed parts: text, reasoning, tool calls."""
