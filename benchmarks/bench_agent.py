"""How much of an agent's prompts comes from the cache: 12 tool calls, one request each, over chat
completions, Responses and Messages.

    python benchmarks/bench_agent.py [--url URL] [--calls 12] [-- more options of radixserve serve]

Without a URL it starts a server with the embedded model. The conversation is that of an agent: a
system prompt of about 700 tokens, three tools, and after every call its result. `tool_choice` makes
every answer a call, so the conversation has its length whatever the model is. Each API has a system
prompt of its own, so that none finds what another one left in the cache. The first request, of
which little can be found, counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from radixserve.loadtest.prose import prose
from radixserve.loadtest.server import server

Json = dict[str, Any]

CALLS = 12
WORDS = 400  # of the system prompt
MAX_TOKENS = 200
PLACES = ["kitchen", "cellar", "garden", "attic", "office"]
SCHEMA: Json = {
    "type": "object",
    "properties": {"place": {"type": "string", "enum": PLACES}},
    "required": ["place"],
    "additionalProperties": False,
}
TOOLS = {
    "open_door": "Opens the door of a room.",
    "read_thermometer": "Tells the temperature of a room.",
    "list_things": "Names the things in a room.",
}


@dataclass(slots=True)
class Counts:
    """Tokens of all prompts so far, and how many of them came from the cache."""

    prompt: int = 0
    cached: int = 0

    @property
    def share(self) -> float:
        """What part of the prompts came from the cache, 0 to 1."""
        return self.cached / self.prompt


def post(url: str, path: str, body: Json) -> Json:
    """The answer to a body, as JSON. Raises urllib.error.HTTPError if it is refused."""
    headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: Json = json.loads(answer.read())
    return found


def result_of(call: str) -> str:
    """What a tool answers: a short sentence that depends on the call."""
    return f"Done: {call}. {prose(12, call)}"


def system_of(api: str) -> str:
    """The system prompt of an agent that uses this API."""
    return prose(WORDS, "agent", api)


def over_chat(url: str, calls: int) -> Counts:
    """The loop over /v1/chat/completions."""
    counts = Counts()
    functions = [
        {"name": name, "description": text, "parameters": SCHEMA} for name, text in TOOLS.items()
    ]
    messages: list[Json] = [
        {"role": "system", "content": system_of("chat")},
        {"role": "user", "content": "Look after the house."},
    ]
    for _ in range(calls):
        body = {
            "messages": messages,
            "tools": [{"type": "function", "function": each} for each in functions],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_tokens": MAX_TOKENS,
        }
        answer = post(url, "/v1/chat/completions", body)
        usage = answer["usage"]
        counts.prompt += usage["prompt_tokens"]
        counts.cached += usage["prompt_tokens_details"]["cached_tokens"]
        message = answer["choices"][0]["message"]
        (call,) = message["tool_calls"]
        text = result_of(call["function"]["arguments"])
        messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": text}]
    return counts


def over_responses(url: str, calls: int) -> Counts:
    """The loop over /v1/responses."""
    counts = Counts()
    items: list[Json] = [{"role": "user", "content": "Look after the house."}]
    for _ in range(calls):
        body = {
            "instructions": system_of("responses"),
            "input": items,
            "tools": [
                {"type": "function", "name": name, "description": text, "parameters": SCHEMA}
                for name, text in TOOLS.items()
            ],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_output_tokens": MAX_TOKENS,
            "store": False,
        }
        answer = post(url, "/v1/responses", body)
        usage = answer["usage"]
        counts.prompt += usage["input_tokens"]
        counts.cached += usage["input_tokens_details"]["cached_tokens"]
        (call,) = [item for item in answer["output"] if item["type"] == "function_call"]
        output = result_of(call["arguments"])
        told = {"type": "function_call_output", "call_id": call["call_id"], "output": output}
        items += [*answer["output"], told]
    return counts


def over_messages(url: str, calls: int) -> Counts:
    """The loop over /v1/messages."""
    counts = Counts()
    messages: list[Json] = [{"role": "user", "content": "Look after the house."}]
    for _ in range(calls):
        body = {
            "system": system_of("messages"),
            "messages": messages,
            "tools": [
                {"name": name, "description": text, "input_schema": SCHEMA}
                for name, text in TOOLS.items()
            ],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "max_tokens": MAX_TOKENS,
        }
        answer = post(url, "/v1/messages", body)
        usage = answer["usage"]
        read, new = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
        counts.prompt += usage["input_tokens"] + read + new
        counts.cached += read
        (call,) = [block for block in answer["content"] if block["type"] == "tool_use"]
        text = result_of(json.dumps(call["input"]))
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": text}
        messages += [
            {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": [result]},
        ]
    return counts


LOOPS: dict[str, Callable[[str, int], Counts]] = {
    "chat completions": over_chat,
    "Responses": over_responses,
    "Messages": over_messages,
}


def main() -> None:
    """Read the command, run every loop, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a server that runs; without it one is started")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("options", nargs="*", help="more options of radixserve serve")
    chosen = parser.parse_args()
    running = contextlib.nullcontext(chosen.url) if chosen.url else server(chosen.options)
    with running as url:
        print("| API | prompt tokens | from the cache | share |\n|---|---|---|---|")
        for name, loop in LOOPS.items():
            counts = loop(url, chosen.calls)
            print(f"| {name} | {counts.prompt} | {counts.cached} | {counts.share:.3f} |")


if __name__ == "__main__":
    main()
