"""The fields that servers do not support: a table, and a function that removes them from a body.
Fields that are not in the table are sent unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

from radixserve.loadtest.session import Json


@dataclass(frozen=True, slots=True)
class Dialect:
    """A kind of server."""

    refused: frozenset[str] = frozenset()  # fields that it refuses or ignores
    lists_models: bool = True  # whether /v1/models lists every model; otherwise it is not requested
    token_ids: bool = True  # /v1/completions takes a prompt of token ids

    def spoken(self, body: Json) -> Json:
        """The body without the fields that the server refuses."""
        return {key: value for key, value in body.items() if key not in self.refused}


# Found by sending each field to each server, started as in docs/lab/notebook.md; for the last one
# partly from its source.
_RADIXSERVE = """
    best_of cache_prompt cache_salt parallel_tool_calls priority prompt_cache_key reasoning_effort
    response_format skip_special_tokens store suffix tool_choice tools verbosity
""".split()  # noqa: SIM905 - lists of literals would take a page

# Tools are refused without a parser for them; the default order of the queue ignores priorities.
_VLLM = """
    best_of cache_prompt metadata parallel_tool_calls priority prompt_cache_key service_tier store
    suffix tool_choice tools user verbosity
""".split()  # noqa: SIM905

# Tools are ignored if the model's chat template does not support them.
_LLAMA_CPP = """
    best_of cache_salt echo metadata min_tokens parallel_tool_calls priority prompt_cache_key
    reasoning_effort repetition_penalty service_tier skip_special_tokens stop_token_ids store suffix
    tool_choice tools user verbosity
""".split()  # noqa: SIM905

# Some are answered by 422, the others are ignored. With continuous batching every request uses the
# sampling parameters of the first one.
_TRANSFORMERS = """
    best_of cache_prompt cache_salt echo frequency_penalty ignore_eos logit_bias logprobs metadata
    min_p min_tokens n parallel_tool_calls presence_penalty priority prompt_cache_key
    reasoning_effort repetition_penalty response_format seed service_tier skip_special_tokens stop
    stop_token_ids store stream_options suffix tool_choice tools top_k top_logprobs top_p user
    verbosity
""".split()  # noqa: SIM905

DIALECTS = {
    "openai": Dialect(),
    "radixserve": Dialect(frozenset(_RADIXSERVE)),
    "vllm": Dialect(frozenset(_VLLM)),
    "llama.cpp": Dialect(frozenset(_LLAMA_CPP)),
    "transformers": Dialect(frozenset(_TRANSFORMERS), lists_models=False, token_ids=False),
}
