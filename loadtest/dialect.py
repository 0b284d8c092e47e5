"""What servers do not take: a table, and a body without it. A field not named here is sent as it is."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.session import Json


@dataclass(frozen=True, slots=True)
class Dialect:
    """A kind of server."""

    refused: frozenset[str] = frozenset()  # fields that it refuses, or takes and ignores
    lists_models: bool = True  # /v1/models names every model that a request may ask for
    token_ids: bool = True  # /v1/completions takes a prompt of token ids

    def spoken(self, body: Json) -> Json:
        """The body without what the server refuses."""
        return {key: value for key, value in body.items() if key not in self.refused}


# The first kind is answered by 422, the second ignored; usage comes in its streams without being asked for.
_TRANSFORMERS = """
    best_of cache_prompt cache_salt echo ignore_eos logprobs metadata min_p min_tokens n presence_penalty
    repetition_penalty response_format stop_token_ids store stream_options tool_choice top_k top_logprobs user
""".split()  # noqa: SIM905 - a list of literals would take a page

DIALECTS = {
    "openai": Dialect(),
    "radixserve": Dialect(frozenset({"best_of", "cache_prompt", "suffix", "tools", "tool_choice", "response_format"})),
    "vllm": Dialect(frozenset({"best_of", "cache_prompt", "suffix"})),
    "llama.cpp": Dialect(frozenset({"best_of", "cache_salt", "echo", "stop_token_ids", "suffix"})),
    "transformers": Dialect(frozenset(_TRANSFORMERS), lists_models=False, token_ids=False),
}
