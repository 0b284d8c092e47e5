"""The request bodies of the OpenAI dialect exactly as a client may write them.

Owns names, types and nullability; `validate` owns ranges and rules across fields. Knows nothing of
the engine or tokenizer.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from radixserve.api.openai.wire_format import ResponseFormat, StructuredOutputs
from radixserve.api.openai.wire_tools import (
    CalledFunction,
    Function,
    NamedFunction,
    Tool,
    ToolCall,
    ToolChoice,
)
from radixserve.defaults import Defaults


class SharedBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields that all bodies of this dialect have which ask for answers, by the same name and
    with the same meaning.
    """

    model: str | None = None  # the model served
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    # the cache
    cache_salt: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    # These fields have no effect here, because the server keeps no records of its users, has one
    # tier of service and no tools, and its cache needs no hints.
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None

    @property
    def has_breakpoints(self) -> bool:
        """Whether parts of the prompt are marked for caches."""
        return False

    @property
    def stores_cache(self) -> bool:
        """Whether computed K/V may be kept: OpenAI's explicit mode without a mark forbids it."""
        options = self.prompt_cache_options
        return options is None or options.mode != "explicit" or self.has_breakpoints

    @property
    def wants_pin(self) -> bool:
        """Whether the prompt, or a part of it, is meant to be kept."""
        options = self.prompt_cache_options
        return self.has_breakpoints or (options is not None and options.ttl is not None)


class KnownElsewhere(SharedBody, kw_only=True, forbid_unknown_fields=True):
    """Fields of the OpenAI API and of its popular extensions that radixserve does not implement.

    Some are served by chat only, which declares them again with their types. All are declared so
    that null and a value that changes nothing (`AS_IF_ABSENT`) are accepted,
    and any other value is refused by name instead of being ignored.
    """

    audio: Any = None
    best_of: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    custom_logit_processor: Any = None
    documents: Any = None
    dry_multiplier: Any = None
    function_call: Any = None
    functions: Any = None
    guided_decoding_backend: Any = None
    id_slot: Any = None
    include_reasoning: bool | None = None
    input_ids: Any = None
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
    prompt_embeds: Any = None
    reasoning_effort: str | None = None
    repetition_detection: Any = None
    request_id: Any = None
    return_hidden_states: Any = None
    rid: Any = None
    samplers: Any = None
    separate_reasoning: bool | None = None
    session_id: Any = None
    session_params: Any = None
    spaces_between_special_tokens: Any = None
    stop_regex: Any = None
    stream_interval: Any = None
    suffix: Any = None
    thinking_token_budget: Any = None
    tool_choice: Any = None
    tools: Any = None
    typical_p: Any = None
    use_beam_search: Any = None
    vllm_xargs: Any = None
    web_search_options: Any = None


AS_IF_ABSENT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "no_stop_trim": (False,),
    "return_hidden_states": (False,),
    "spaces_between_special_tokens": (True,),
    "stream_interval": (1,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
}
"""For fields of `KnownElsewhere`: the values that describe what radixserve does anyway."""

WITHOUT_EFFECT_ON_TEXT = ("include_reasoning", "reasoning_effort", "separate_reasoning")
"""Fields of `KnownElsewhere` that chat serves, and that change nothing for completions."""


class Prediction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The answer that the client expects. It could make an answer faster, but never different."""

    type: Literal["content"]
    content: str | list[ContentPart]


class PromptCacheOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the prompt's K/V may be kept."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: str | None = None
    prewarm: bool | None = None


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(KnownElsewhere, kw_only=True, forbid_unknown_fields=True):
    """The fields that chat and text completions have in common."""

    max_tokens: int | None = None
    n: int | None = None
    priority: int | None = None
    stream_options: StreamOptions | None = None
    # the form of the answer, in the words of several servers
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | str | bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | None = None
    # tokens and text
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    # the cache
    extra_key: str | None = None
    cache_prompt: bool | None = None
    # These fields have no effect here.
    prediction: Prediction | None = None
    verbosity: str | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate; None: the default."""
        return self.max_tokens

    @property
    def prompt_field(self) -> str:
        """The field that the prompt is made of."""
        return "prompt"

    @property
    def num_choices(self) -> int:
        """How many answers each prompt gets."""
        return 1 if self.n is None else self.n

    @property
    def num_drawn(self) -> int:
        """How many answers to each prompt are generated; the best `num_choices` are sent."""
        return self.num_choices

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives each token is reported with; None: no logprobs are wanted."""
        return None

    @property
    def reads_cache(self) -> bool:
        """Whether cached K/V may be used."""
        return self.cache_prompt is not False and self.stores_cache

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
    """A message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None  # name of the speaker; not passed to templates
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    reasoning: str | None = None  # another name of the next
    reasoning_content: str | None = None
    # Clients send an answer's message back unchanged, so null and empty values are accepted.
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    # marks for caches, which are not needed: what can be cached is
    cache_control: Any = None
    prompt_cache_breakpoint: Any = None

    @property
    def has_breakpoints(self) -> bool:
        """Whether the message or one of its parts is marked for caches."""
        parts = self.content if isinstance(self.content, list) else ()
        return any(
            each.cache_control is not None or each.prompt_cache_breakpoint is not None
            for each in (self, *parts)
        )


class ChatBody(GenerationBody, kw_only=True, forbid_unknown_fields=True):
    """A conversation to be continued."""

    messages: list[Message]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    functions: list[Function] | None = None
    function_call: str | NamedFunction | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    echo: bool | None = None

    @property
    def token_limit(self) -> int | None:
        """See `GenerationBody.token_limit`; the newer name has precedence."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def prompt_field(self) -> str:
        """See `GenerationBody.prompt_field`."""
        return "messages"

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationBody.num_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def default_limit(self, defaults: Defaults) -> int | None:
        """See `GenerationBody.default_limit`."""
        return defaults.chat_max_tokens

    @property
    def has_breakpoints(self) -> bool:
        """See `SharedBody.has_breakpoints`."""
        return any(message.has_breakpoints for message in self.messages)


class CompletionBody(GenerationBody, kw_only=True, forbid_unknown_fields=True):
    """Texts, or token ids, to be continued, or texts before and behind what is filled in."""

    best_of: int | None = None
    suffix: str | None = None

    prompt: str | list[int | str | list[int]]
    logprobs: int | None = None
    echo: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationBody.num_logprobs`."""
        return self.logprobs

    @property
    def num_drawn(self) -> int:
        """See `GenerationBody.num_drawn`."""
        return self.best_of or self.num_choices

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
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    tokens: list[int]
