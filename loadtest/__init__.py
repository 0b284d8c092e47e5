"""Replays traffic with shared prompts against any OpenAI-compatible URL and tells what happened.

Talks HTTP only and imports nothing of the server, so that the same numbers can be had from any other one.
Use: `python -m loadtest WORKLOAD --url URL`.
"""
