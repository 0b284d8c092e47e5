"""The request bodies of the OpenAI dialect exactly as a client may write them.

Owns names, types and nullability; `validate` owns ranges and rules across fields. Knows nothing of
the engine or tokenizer.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from radixserve.defaults import Defaults


class KnownElsewhere(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of the OpenAI API and of its popular extensions that radixserve does not implement.

    They are declared so that null and a value that changes nothing (`AS_IF_ABSENT`) are accepted,
    and any other value is refused by name instead of being ignored.
    """

    add_special_tokens: Any = None
    allowed_token_ids: Any = None
    audio: Any = None
    bad_words: Any = None
    best_of: Any = None
    cache_prompt: Any = None
    cache_salt: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    custom_logit_processor: Any = None
    documents: Any = None
    dry_multiplier: Any = None
    ebnf: Any = None
    extra_key: Any = None
    function_call: Any = None
    functions: Any = None
    grammar: Any = None
    guided_choice: Any = None
    guided_decoding_backend: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    id_slot: Any = None
    include_reasoning: bool | None = None
    include_stop_str_in_output: Any = None
    input_ids: Any = None
    json_schema: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    logprob_token_ids: Any = None
    lora: Any = None
    lora_path: Any = None
    media_io_kwargs: Any = None
    mirostat: Any = None
    mm_processor_kwargs: Any = None
    modalities: Any = None
    moderation: Any = None
    n_keep: Any = None
    n_predict: Any = None
    n_probs: Any = None
    no_stop_trim: Any = None
    priority: Any = None
    prompt_cache_options: Any = None
    prompt_embeds: Any = None
    prompt_logprobs: Any = None
    reasoning_effort: str | None = None
    regex: Any = None
    repetition_detection: Any = None
    request_id: Any = None
    response_format: Any = None
    return_hidden_states: Any = None
    return_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    rid: Any = None
    samplers: Any = None
    separate_reasoning: bool | None = None
    session_id: Any = None
    session_params: Any = None
    skip_special_tokens: Any = None
    spaces_between_special_tokens: Any = None
    stop_regex: Any = None
    stream_interval: Any = None
    structured_outputs: Any = None
    suffix: Any = None
    thinking_token_budget: Any = None
    tool_choice: Any = None
    tools: Any = None
    truncate_prompt_tokens: Any = None
    truncation_side: Any = None
    typical_p: Any = None
    use_beam_search: Any = None
    vllm_xargs: Any = None
    web_search_options: Any = None


AS_IF_ABSENT: dict[str, tuple[Any, ...]] = {
    "bad_words": ([],),
    "best_of": (1,),
    "cache_prompt": (True,),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "no_stop_trim": (False,),
    "priority": (0,),
    "prompt_cache_options": ({"mode": "implicit"},),
    "response_format": ({"type": "text"},),
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stream_interval": (1,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
}
"""For fields of `KnownElsewhere`: the values that describe what radixserve does anyway."""

IF_NO_REASONING = ("include_reasoning", "reasoning_effort", "separate_reasoning")
"""Fields of `KnownElsewhere` that change nothing where the model does not reason."""


class Prediction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The answer that the client expects. It could make an answer faster, but never different."""

    type: Literal["content"]
    content: str | list[ContentPart]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(KnownElsewhere, kw_only=True, forbid_unknown_fields=True):
    """The fields that chat and text completions have in common."""

    model: str | None = None  # the model served
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # These fields have no effect here, because the server keeps no records of its users, has one
    # tier of service and no tools, and its cache needs no hints.
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None
    verbosity: str | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate; None: the default."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives each token is reported with; None: no logprobs are wanted."""
        return None

    @property
    def wants_echo(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    def default_limit(self, defaults: Defaults) -> int | None:
        """The default of `token_limit`; None: what is left of the context."""
        return defaults.completion_max_tokens


class ContentPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One part of a message's content. Only text is supported; the other members are declared so
    that they are refused by name.
    """

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    audio_url: Any = None
    video_url: Any = None
    file: Any = None
    refusal: Any = None
    cache_control: Any = None
    prompt_cache_breakpoint: Any = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None  # name of the speaker; not passed to templates
    # Clients send an answer's message back unchanged, so null and empty values are accepted.
    refusal: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    annotations: Any = None
    audio: Any = None
    reasoning: Any = None
    reasoning_content: Any = None


class ChatBody(GenerationBody, kw_only=True, forbid_unknown_fields=True):
    """A conversation to be continued."""

    messages: list[Message]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    echo: bool | None = None

    @property
    def token_limit(self) -> int | None:
        """See `GenerationBody.token_limit`; the newer name has precedence."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationBody.num_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def default_limit(self, defaults: Defaults) -> int | None:
        """See `GenerationBody.default_limit`."""
        return defaults.chat_max_tokens


class CompletionBody(GenerationBody, kw_only=True, forbid_unknown_fields=True):
    """Texts, or token ids, to be continued."""

    prompt: str | list[int | str | list[int]]
    logprobs: int | None = None
    echo: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationBody.num_logprobs`."""
        return self.logprobs

    @property
    def wants_echo(self) -> bool:
        """See `GenerationBody.wants_echo`."""
        return bool(self.echo)


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Has exactly one of `prompt` and `messages`, each with its own options."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    tokens: list[int]
