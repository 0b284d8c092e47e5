"""All settings, each with its type, limits, default, section, unit and help.

From `Settings` come the TOML file's sections, the `--flags`, the `RADIXSERVE_*` variables and
docs/settings.md (`config_table`); `config_sources` reads them. The frozen value is sent as it is to
the engine process. Nothing here knows what a setting does; derived values (the slots of a budget,
the threads of a machine) belong to the modules that use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

SECTIONS: Final = {
    "server": "Where and what the server answers",
    "model": "Which model, and where it runs",
    "cache": "Memory for keys and values, and the prefix cache in it",
    "scheduler": "What one step of the engine may hold",
    "limits": "What one client may ask for",
    "telemetry": "What is told to other systems",
}
"""Every section with its title, in the order of the help, the file and the documentation."""


@dataclass(frozen=True, slots=True)
class Doc:
    """The documentation of one setting; `zero` says what 0 (or None) means.

    The value of a `path` may begin with ~, which stands for the user's home folder. The value of a
    `secret` is never shown.
    """

    section: str
    help: str
    unit: str = ""
    zero: str = ""
    path: bool = False
    secret: bool = False


_Key = Annotated[str, Meta(min_length=1, pattern=r"^[\x21-\x7e]+$")]
_Name = Annotated[str, Meta(min_length=1)]

# The names of the formats in `radixserve.parsing` and of the policies in
# `radixserve.cache.policies`, which this module may not import; tests compare them. As literals
# they are checked before anything starts.
EvictionPolicy = Literal["lru", "lfu", "fifo", "slru", "s3-fifo", "sieve", "arc", "worth"]
CpuLevel = Literal["auto", "avx2", "avx512", "avx512_bf16", "amx"]
ToolParser = Literal[
    "auto",
    "hermes",
    "qwen3_coder",
    "seed_oss",
    "llama3_json",
    "llama_pythonic",
    "mistral",
    "mistral_args",
    "deepseek",
    "deepseek_v31",
    "glm",
    "glm47",
    "kimi_k2",
    "minimax_m2",
    "cohere",
    "lfm2",
    "harmony",
    "generic",
]
ReasoningParser = Literal[
    "auto",
    "none",
    "harmony",
    "seed",
    "longcat",
    "kimi_vl",
    "cohere",
    "mistral",
    "think",
    "thinking",
]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting with its type, limits and default."""

    host: Annotated[str, Meta(min_length=1), Doc("server", "address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535), Doc("server", "port to listen on; 0 lets the system choose one")
    ] = 8000
    uds: Annotated[
        _Name | None,
        Doc(
            "server",
            "socket file to listen on instead of host and port",
            zero="host and port",
            path=True,
        ),
    ] = None
    ssl_certfile: Annotated[
        _Name | None,
        Doc("server", "certificate chain (PEM) for https", zero="http", path=True),
    ] = None
    ssl_keyfile: Annotated[
        _Name | None,
        Doc("server", "private key of the certificate (PEM)", zero="in ssl_certfile", path=True),
    ] = None
    root_path: Annotated[
        str,
        Doc("server", "path below which all endpoints are found, too", zero="none"),
    ] = ""
    api_key: Annotated[
        _Key | None,
        Doc(
            "server",
            "API key of an administrator, required by every path but /health, /docs and "
            "/openapi.json; other users of the machine can see a flag but not the variable",
            zero="none",
            secret=True,
        ),
    ] = None
    api_key_file: Annotated[
        _Name | None,
        Doc(
            "server",
            "TOML file with the keys and limits of tenants (docs/tenants.md), read again on SIGHUP",
            zero="none",
            path=True,
        ),
    ] = None
    public_prefix: Annotated[
        _Name | None,
        Doc(
            "server",
            "file of request bodies, one JSON object on each line, whose prompts all tenants share "
            "in the cache (docs/tenants.md), read again on SIGHUP",
            zero="none",
            path=True,
        ),
    ] = None
    tenant_secret: Annotated[
        _Key | None,
        Doc(
            "server",
            "secret from which the namespaces of tenants are made; another one finds nothing that "
            "was cached before",
            zero="drawn once and kept in disk_path; without that, drawn at every start",
            secret=True,
        ),
    ] = None
    health_access: Annotated[
        Literal["open", "admin"],
        Doc("server", "who may ask for /health*: everybody, or where there are keys an admin"),
    ] = "open"
    metrics_access: Annotated[
        Literal["open", "admin"],
        Doc("server", "who may ask for /metrics: everybody, or where there are keys an admin"),
    ] = "admin"
    allowed_hosts: Annotated[
        tuple[_Name, ...],
        Doc(
            "server",
            "host names that requests may use (*.example.com, *); addresses are always allowed",
            zero="local names on loopback without a key, otherwise any",
        ),
    ] = ()
    allow_origin: Annotated[
        tuple[_Name, ...],
        Doc("server", "origins of web pages that may use this server (*: any)"),
    ] = ()
    max_connections: Annotated[
        int,
        Meta(ge=0),
        Doc(
            "server",
            "most connections at a time; at the limit the longest idle one is closed for a new one",
            zero="4096, or what the limit of open files leaves",
        ),
    ] = 0
    keep_alive_seconds: Annotated[
        float,
        Meta(gt=0, le=86400),
        Doc("server", "how long an idle connection stays open", "seconds"),
    ] = 75.0
    drain_seconds: Annotated[
        float,
        Meta(ge=0, le=86400),
        Doc(
            "server",
            "how long running requests may take after SIGTERM or Ctrl-C (a second one ends the "
            "server at once)",
            "seconds",
        ),
    ] = 30.0
    hang_seconds: Annotated[
        float,
        Meta(ge=0.1, le=86400),
        Doc(
            "server",
            "time after which an engine that has work and ends no step is killed and started "
            "again (ten times the slowest step, if that is longer)",
            "seconds",
        ),
    ] = 60.0
    spare_engine: Annotated[
        Literal["auto", "on", "off"],
        Doc(
            "server",
            "whether a second engine process, which has imported everything but loaded no model, "
            "waits for the death of the first, so that the next engine need not import; takes "
            "290 MiB of memory; auto: if the model is a real one and 2 GiB of memory are free",
        ),
    ] = "auto"
    stream_comment_seconds: Annotated[
        float,
        Meta(ge=0, le=3600),
        Doc(
            "server",
            "time without an event after which a stream gets a comment line (0: never)",
            "seconds",
        ),
    ] = 5.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Doc("server", "lowest level that is logged")
    ] = "info"

    model: Annotated[
        tuple[_Name, ...],
        Doc(
            "model",
            "folder, GGUF file or hub name of the model, also as NAME=MODEL with the name that "
            "clients use; several models share one K/V budget (docs/operations.md)",
            zero="the embedded model",
            path=True,
        ),
    ] = ()
    revision: Annotated[
        _Name | None,
        Doc("model", "branch, tag or commit of a model from the hub", zero="main"),
    ] = None
    served_model_name: Annotated[
        tuple[_Name, ...],
        Doc(
            "model",
            "names that clients may use in requests (*: any characters); answers carry the first "
            "without *",
            zero="derived from the model",
        ),
    ] = ()
    lora: Annotated[
        tuple[_Name, ...],
        Doc(
            "model",
            "adapters as NAME=PATH of a folder in PEFT's format, which requests name as their "
            "model (docs/adapters.md)",
            zero="none",
        ),
    ] = ()
    lora_dir: Annotated[
        _Name | None,
        Doc(
            "model",
            "folder below which POST /v1/load_lora_adapter finds adapters",
            zero="none are loaded while the server runs",
            path=True,
        ),
    ] = None
    chat_template: Annotated[
        _Name | None,
        Doc("model", "file with a chat template (Jinja)", zero="the model's own", path=True),
    ] = None
    volatile_prefix: Annotated[
        tuple[_Name, ...],
        Doc(
            "model",
            "regular expressions (RE2's syntax) for lines at the front of system prompts that "
            "change with every request; such lines are left out",
        ),
    ] = ("x-anthropic-billing-header:",)
    allow_control_tokens: Annotated[
        bool,
        Doc(
            "model",
            "names of control tokens in messages and prompts become tokens, not plain text",
        ),
    ] = False
    tool_parser: Annotated[
        ToolParser,
        Doc(
            "model",
            "how the model writes tool calls (docs/tools.md shows each); auto finds it in the "
            "chat template",
        ),
    ] = "auto"
    reasoning_parser: Annotated[
        ReasoningParser,
        Doc(
            "model",
            "how the model sets its reasoning apart (docs/tools.md shows each), none: it does not; "
            "auto finds it in the chat template",
        ),
    ] = "auto"
    max_model_len: Annotated[
        int,
        Meta(ge=0),
        Doc("model", "most tokens of prompt and answer together", zero="the model's context"),
    ] = 0
    generation_config: Annotated[
        _Name | None,
        Doc(
            "model",
            "generation_config.json with the defaults of requests, or its folder; none: OpenAI's",
            zero="the model's own",
            path=True,
        ),
    ] = None
    default_sampling: Annotated[
        tuple[_Name, ...],
        Doc(
            "model",
            "defaults of requests as KEY=VALUE, such as temperature=0; they win over "
            "`generation_config`",
            zero="none",
        ),
    ] = ()
    default_max_tokens: Annotated[
        int,
        Meta(ge=0),
        Doc(
            "model",
            "tokens generated for a request that gives no limit",
            zero="max_new_tokens of the generation config or what is left of the context for "
            "chat, 16 for completions",
        ),
    ] = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Doc("model", "where the model runs; auto prefers CUDA")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Doc(
            "model",
            "type of weights and activations; auto is float32 on the CPU, but bfloat16 for a "
            "bfloat16 checkpoint where the CPU multiplies it (AVX512-BF16, AMX); on CUDA "
            "float16 for a float16 checkpoint, else bfloat16",
        ),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "int8", "int4"],
        Doc(
            "model",
            "quantise the weights of linear layers while the model is loaded: int8 takes 8.5 "
            "bits a value, int4 5, its output layer 8.5. Answers change, the same for a cache hit "
            "and a miss. On the CPU, with float32 or bfloat16 (docs/models.md)",
        ),
    ] = "none"
    kv_dtype: Annotated[
        Literal["same", "float32", "bfloat16", "int8", "fp8"],
        Doc(
            "model",
            "type of keys and values; same: that of the weights. int8 and fp8 take half of "
            "bfloat16 and change answers a little, the same for a cache hit and a miss. On CUDA "
            "only same",
        ),
    ] = "same"
    cpu_level: Annotated[
        CpuLevel,
        Doc(
            "model",
            "most instructions that CPU kernels use; auto: all that the processor has. "
            "Levels may differ in bits; each is exact",
        ),
    ] = "auto"
    threads: Annotated[
        int,
        Meta(ge=0, le=1024),
        Doc(
            "model",
            "threads for computing on the CPU",
            zero="the cores that the process may use, CPU quotas rounded down",
        ),
    ] = 0
    fake_model: Annotated[
        bool,
        Doc("model", "serve a fake model without cost, to measure everything around the model"),
    ] = False

    kv_budget: Annotated[
        int,
        Meta(ge=0),
        Doc("cache", "memory for keys and values", "bytes", zero="a share of the free memory"),
    ] = 0
    kv_share: Annotated[
        float,
        Meta(ge=0, le=0.95),
        Doc(
            "cache",
            "share of the device memory left free by the model, for keys and values",
            zero="0.85 on CUDA; 0.25 on the CPU, 4 GiB at most",
        ),
    ] = 0.0
    kv_budget_max: Annotated[
        int,
        Meta(ge=0),
        Doc(
            "cache",
            "the K/V budget moves by itself up to this, by what more memory would bring and what "
            "the machine has free; kv_budget is where it begins (docs/operations.md)",
            "bytes",
            zero="it stays as it is",
        ),
    ] = 0
    kv_budget_min: Annotated[
        int,
        Meta(ge=0),
        Doc(
            "cache",
            "the K/V budget does not shrink by itself below this; with several models that of "
            "each, which bounds the length of its requests",
            "bytes",
            zero="a quarter of the budget at start, with several models of an equal part",
        ),
    ] = 0
    cache: Annotated[bool, Doc("cache", "reuse the keys and values of shared prefixes")] = True
    eviction_policy: Annotated[
        EvictionPolicy,
        Doc(
            "cache",
            "which prefix that nobody uses goes first when memory is short, on the device and in "
            "host memory (docs/eviction.md compares them; the disk evicts the least recently used)",
        ),
    ] = "lru"
    host_budget: Annotated[
        int,
        Meta(ge=0),
        Doc(
            "cache", "host memory for keys and values that the device evicts", "bytes", zero="none"
        ),
    ] = 0
    host_budget_max: Annotated[
        int,
        Meta(ge=0),
        Doc(
            "cache",
            "the budget of host memory moves by itself up to this, and down to a quarter of "
            "host_budget, where it begins; with kv_budget_max on the CPU memory also moves between "
            "the two (docs/operations.md)",
            "bytes",
            zero="it stays as it is",
        ),
    ] = 0
    disk_path: Annotated[
        _Name | None,
        Doc(
            "cache",
            "folder that keeps keys and values when the server ends",
            zero="nothing is stored",
            path=True,
        ),
    ] = None
    disk_budget: Annotated[
        int, Meta(ge=1 << 20), Doc("cache", "largest size of the disk folder", "bytes")
    ] = 10 << 30
    disk_trust_others: Annotated[
        bool,
        Doc(
            "cache",
            "use the disk folder even if another user owns it, or its group or others can "
            "write to it",
        ),
    ] = False
    tier_dtype: Annotated[
        Literal["same", "float8"],
        Doc(
            "cache",
            "type of keys and values in host memory and on the disk; float8 is smaller and "
            "not exact",
        ),
    ] = "same"
    pin_share: Annotated[
        float,
        Meta(ge=0, le=1),
        Doc(
            "cache",
            "most that pins (POST /cache/pin) may hold together, as a share of the K/V memory on "
            "the device",
        ),
    ] = 0.25
    request_pin_share: Annotated[
        float,
        Meta(ge=0, le=1),
        Doc(
            "cache",
            "most that pins which one tenant's requests ask for (ttl fields) may hold of it, as a "
            "share of the K/V memory on the device, or of the tenant's kv_quota",
        ),
    ] = 0.125
    warm: Annotated[
        _Name | None,
        Doc(
            "cache",
            "file of request bodies, one JSON object on each line, whose prompts are computed at "
            "the start and after a death of the engine (docs/cache.md)",
            zero="none",
            path=True,
        ),
    ] = None
    warm_seconds: Annotated[
        float,
        Meta(ge=0, le=86400),
        Doc(
            "cache",
            "how long /health/ready waits at the start for these prompts; those that are left are "
            "computed afterwards",
            "seconds",
        ),
    ] = 60.0
    record: Annotated[
        _Name | None,
        Doc(
            "cache",
            "file to which each request's block hashes, lengths and time are appended, without "
            "text, for `radixserve cache simulate`",
            zero="nothing is recorded",
            path=True,
        ),
    ] = None
    record_key: Annotated[
        _Key | None,
        Doc(
            "cache",
            "key of these hashes; with the same key those of several runs or servers agree",
            zero="a random one for each run",
            secret=True,
        ),
    ] = None
    kv_events: Annotated[
        _Name | None,
        Doc(
            "cache",
            "ZeroMQ address at which the server publishes which blocks of tokens are cached, for "
            "routers that read vLLM's KV events, as in tcp://127.0.0.1:5557 (docs/kv-events.md); "
            "they hold the tokens of prompts",
            zero="nothing is published",
        ),
    ] = None
    kv_events_replay: Annotated[
        _Name | None,
        Doc(
            "cache",
            "ZeroMQ address at which subscribers ask for what they have missed, as in "
            "tcp://127.0.0.1:5558",
            zero="they cannot",
        ),
    ] = None
    kv_events_topic: Annotated[
        str, Meta(max_length=200), Doc("cache", "topic of these messages", zero="the empty one")
    ] = ""
    kv_events_block: Annotated[
        int,
        Meta(ge=1, le=1024),
        Doc("cache", "tokens of a block in them; the router has to be told the same number"),
    ] = 16

    max_running: Annotated[
        int, Meta(ge=1, le=4096), Doc("scheduler", "most sequences in one step")
    ] = 16
    max_step_tokens: Annotated[
        int,
        Meta(ge=0),
        Doc("scheduler", "most tokens computed in one step", zero="256 on the CPU, 2048 on CUDA"),
    ] = 0
    prefill_share: Annotated[
        float,
        Meta(ge=0, le=1000),
        Doc(
            "scheduler",
            "how long prompt tokens may take, in times of the decodes, in a step for which others "
            "wait: answers that run, or another tenant; more is faster for new prompts and slower "
            "for these (0: no limit)",
        ),
    ] = 1.0
    shared_step_ms: Annotated[
        float,
        Meta(ge=0, le=60_000),
        Doc(
            "scheduler",
            "how long a step for which others wait may last in any case, however short its decodes",
            "milliseconds",
        ),
    ] = 25.0
    speculate: Annotated[
        Literal["off", "tree"],
        Doc(
            "scheduler",
            "whether answers guess several tokens at a time from what followed the same tokens "
            "before, in the cache or in themselves; answers stay the same",
        ),
    ] = "off"
    max_queue: Annotated[
        int,
        Meta(ge=1),
        Doc("scheduler", "most waiting requests; further ones are refused with 503"),
    ] = 256
    max_queue_tokens: Annotated[
        int,
        Meta(ge=0),
        Doc(
            "scheduler",
            "most prompt tokens that wait to be computed, cached ones not counted; further "
            "requests are refused with 503",
            zero="what can be computed in max_queue_seconds",
        ),
    ] = 0
    max_queue_seconds: Annotated[
        float,
        Meta(gt=0, le=86400),
        Doc(
            "scheduler",
            "longest wait that a new request may expect, by recent speeds; further ones are "
            "refused with 503",
            "seconds",
        ),
    ] = 60.0
    overload_queue_seconds: Annotated[
        float,
        Meta(gt=0, le=86400),
        Doc(
            "scheduler",
            "longest wait that a new request may expect once one of its tenant was refused because "
            "too many waited, until none was for 10 seconds; with as much as max_queue_seconds "
            "the queue stays long",
            "seconds",
        ),
    ] = 5.0

    max_body_bytes: Annotated[
        int, Meta(ge=1024), Doc("limits", "largest size of a request's body", "bytes")
    ] = 4 << 20
    render_seconds: Annotated[
        float,
        Meta(gt=0, le=3600),
        Doc(
            "limits",
            "longest time for rendering the chat template and tokenising, for one request",
            "seconds",
        ),
    ] = 10.0
    tokenizer_processes: Annotated[
        int, Meta(ge=1, le=1024), Doc("limits", "processes that render and tokenise")
    ] = 2
    unknown_fields: Annotated[
        Literal["refuse", "warn"],
        Doc(
            "limits",
            "what happens to a body with a field that this version does not know: it is refused, "
            "or served without the field, which the log names",
        ),
    ] = "refuse"
    max_choices: Annotated[int, Meta(ge=1), Doc("limits", "largest `n` of one request")] = 16
    max_prompts: Annotated[
        int, Meta(ge=1), Doc("limits", "most prompts in one completion request")
    ] = 16

    otlp_endpoint: Annotated[
        _Name | None,
        Doc(
            "telemetry",
            "address of an OpenTelemetry collector (OTLP over HTTP) for traces and metrics, such "
            "as http://127.0.0.1:4318; needs the extra radixserve[otel]",
            zero="OTEL_EXPORTER_OTLP_ENDPOINT if that is set, otherwise nothing is sent",
        ),
    ] = None
    metric_aliases: Annotated[
        Literal["none", "vllm"],
        Doc(
            "telemetry",
            "names of another server under which /metrics shows its numbers, too, for gateways "
            "and autoscalers that know them",
        ),
    ] = "none"
    trace_ratio: Annotated[
        float,
        Meta(ge=0, le=1),
        Doc(
            "telemetry",
            "share of the requests that are traced, where the client's own trace has not decided; "
            "OTEL_TRACES_SAMPLER wins if that is set",
        ),
    ] = 1.0
