"""The limits of the HTTP layer, as one frozen value. Limits that an operator can choose come from
`Settings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from radixserve.api.access import allowed_hosts
from radixserve.api.volatile import Pattern, compiled
from radixserve.config import Settings
from radixserve.defaults import OPENAI, Defaults


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Limits on what one client may request, and on the time that it may take."""

    max_body_bytes: int = 4 * 1024 * 1024  # after decompression
    max_choices: int = 16  # n
    max_prompts: int = 16  # prompts in one completion body
    max_sequences: int = 256  # n times prompts: more than the queue holds could never be accepted
    max_stops: int = 4
    max_stop_chars: int = 1024  # of one stop string
    max_stop_token_ids: int = 128
    max_logit_bias: int = 300
    max_bad_words: int = 64
    max_top_logprobs: int = 20
    max_completion_logprobs: int = 5
    max_chars_per_token: int = (
        16  # prompts with more characters per token of context are refused before tokenising
    )
    tokenizer_threads: int = 2
    max_tokenizing: int = 128  # prompts waiting to be tokenised, or texts for a thread; beyond: 503
    body_read_seconds: float = 30.0  # a body that takes longer to arrive: 408
    client_write_seconds: float = (
        30.0  # a stream whose client reads nothing for this long is closed
    )
    stream_comment_seconds: float = (
        5.0  # a stream sends a comment when silent for this long; 0: never
    )
    api_key: str | None = field(default=None, repr=False)  # None: there is no single key
    api_key_file: str | None = None  # None: no other keys
    tenant_secret: str | None = field(default=None, repr=False)  # None: kept in `disk_path`
    disk_path: str | None = None
    health_access: str = "open"  # or "admin"
    metrics_access: str = "admin"  # or "open"
    allowed_hosts: tuple[str, ...] = ()  # empty: any
    allow_origin: tuple[str, ...] = ()
    lora_dir: str | None = None  # None: no adapters are loaded while the server runs
    root_path: str = ""  # as in /prefix; the endpoints are at both
    keep_alive_seconds: float = 75.0  # an idle connection is closed after this time
    header_read_seconds: float = 20.0  # a connection whose headers take longer is closed
    lingering_seconds: float = 2.0  # how long the rest of a refused body is read
    retry_after_seconds: int = 1  # sent with a 503 if the engine gives no figure
    volatile_prefix: tuple[Pattern, ...] = ()  # lines of system prompts that are left out
    tool_parser: str = "auto"  # a name in `FORMATS`
    reasoning_parser: str = "auto"  # a name in `REASONING_FORMATS`, or "none"
    ignore_unknown_fields: bool = False
    defaults: Defaults = OPENAI  # values of fields that a request leaves out

    @classmethod
    def of(cls, settings: Settings, defaults: Defaults) -> ApiSettings:
        """The limits in `settings`; the rest are the defaults of this class. Raises ConfigError for
        a regular expression that is not valid.
        """
        return cls(
            defaults=defaults,
            max_body_bytes=settings.max_body_bytes,
            max_choices=settings.max_choices,
            max_prompts=settings.max_prompts,
            max_sequences=settings.max_queue,
            api_key=settings.api_key,
            api_key_file=settings.api_key_file,
            tenant_secret=settings.tenant_secret,
            disk_path=settings.disk_path,
            health_access=settings.health_access,
            metrics_access=settings.metrics_access,
            lora_dir=settings.lora_dir,
            keep_alive_seconds=settings.keep_alive_seconds,
            allowed_hosts=allowed_hosts(settings),
            allow_origin=settings.allow_origin,
            root_path="/" + path if (path := settings.root_path.strip("/")) else "",
            stream_comment_seconds=settings.stream_comment_seconds,
            volatile_prefix=compiled(settings.volatile_prefix),
            ignore_unknown_fields=settings.unknown_fields == "warn",
            tool_parser=settings.tool_parser,
            reasoning_parser=settings.reasoning_parser,
        )
