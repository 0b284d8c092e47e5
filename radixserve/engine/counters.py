"""What scheduler and steps count."""

from __future__ import annotations

from itertools import pairwise
from typing import Final, get_args

from radixserve.declared import TOKENS, Declared
from radixserve.step import FaultKind
from radixserve.tiers import DEVICE, NAMES

COMPUTED: Final = "computed"


RUNNING = Declared(
    "gauge", "radixserve_requests_running", "requests", "Sequences that take part in steps now"
)

WAITING = Declared(
    "gauge", "radixserve_requests_waiting", "requests", "Sequences accepted and not yet running"
)

BACKLOG_TOKENS = Declared(
    "gauge",
    "radixserve_backlog_tokens",
    "tokens",
    "Prompt tokens of waiting and running sequences that are neither cached nor computed yet",
)

PREFILL_RATE = Declared(
    "gauge",
    "radixserve_prefill_tokens_per_second",
    "tokens per second",
    "Speed of recent steps that had many prompt tokens, or no room for more",
)

PROMPT_TOKENS = Declared(
    "counter",
    "radixserve_prompt_tokens_total",
    "tokens",
    "Prompt tokens by where their keys and values came from: computed, or read from "
    "device, host or disk memory",
    ("source",),
    values=((COMPUTED, DEVICE, *NAMES),),
)

TENANT_PROMPT_TOKENS = Declared(
    "counter",
    "radixserve_tenant_prompt_tokens_total",
    "tokens",
    "Prompt tokens by tenant and source, as above; without a key file the tenant is default",
    ("tenant", "source"),
)

TENANT_REQUESTS = Declared(
    "gauge",
    "radixserve_tenant_requests",
    "requests",
    "Sequences in the engine by tenant: running, or waiting; a tenant without any is left out",
    ("tenant", "state"),
)

ADAPTERS = Declared("gauge", "radixserve_adapters", "adapters", "Adapters in memory")

ADAPTER_BYTES = Declared(
    "gauge", "radixserve_adapter_bytes", "bytes", "What adapters take of the K/V budget"
)

GENERATED_TOKENS = Declared(
    "counter", "radixserve_generated_tokens_total", "tokens", "Tokens generated"
)

FROM_TREE: Final = "tree"
FROM_TEXT: Final = "text"
RIGHT: Final = "right"
WRONG: Final = "wrong"

DRAFT_TOKENS = Declared(
    "counter",
    "radixserve_draft_tokens_total",
    "tokens",
    "Tokens that speculation guessed, by source and by whether they were drawn; those that were "
    "cost no step of their own",
    ("source", "outcome"),
    values=((FROM_TREE, FROM_TEXT), (RIGHT, WRONG)),
)

PREEMPTIONS = Declared(
    "counter",
    "radixserve_preemptions_total",
    "preemptions",
    "Times a running sequence was preempted",
)

STEP_FAULTS = Declared(
    "counter",
    "radixserve_step_faults_total",
    "faults",
    "Steps that failed, by kind (exception, out_of_memory), and rows whose "
    "logits were not finite (not_finite)",
    ("kind",),
    values=(get_args(FaultKind),),
)

STEPS = Declared("counter", "radixserve_steps_total", "steps", "Steps of the engine")

GIVEN_UP = Declared(
    "counter",
    "radixserve_steps_given_up_total",
    "steps",
    "Steps that were given up for a cached prompt of another tenant, and computed again after it",
)

STEP_SECONDS = Declared("histogram", "radixserve_step_seconds", "seconds", "Duration of a step")

STEP_TOKENS = Declared(
    "histogram",
    "radixserve_step_tokens",
    "tokens",
    "Tokens computed in a step",
    buckets=TOKENS,
)

STEP_SEQUENCES = Declared(
    "histogram",
    "radixserve_step_sequences",
    "sequences",
    "Sequences in a step",
    buckets=tuple(float(1 << n) for n in range(11)),
)

DEPTH_BORDERS: Final = (0, 256, 1024, 4096, 16384)  # tokens; each depth begins here
DEPTHS: Final = (
    *(f"{low}-{high - 1}" for low, high in pairwise(DEPTH_BORDERS)),
    f"{DEPTH_BORDERS[-1]}-",
)

HIT_TOKENS = Declared(
    "counter",
    "radixserve_hit_tokens_total",
    "tokens",
    "Prompt tokens found in the cache, by their position in the prompt: what is found only at "
    "small depths is a common system prompt, what is found at large ones are conversations",
    ("depth",),
    values=(DEPTHS,),
)

SAVED_SECONDS = Declared(
    "counter",
    "radixserve_saved_prefill_seconds_total",
    "seconds",
    "Time that computing the cached prompt tokens would have taken at the speed of recent steps",
)

CACHE_OFF: Final = "cache_off"
TOO_SHORT: Final = "too_short"
NOT_LOADED: Final = "not_loaded"
NOT_KEPT: Final = "not_kept"
EVICTED: Final = "evicted"
EXPIRED: Final = "expired"
DROPPED: Final = "dropped"
PREFIX_CHANGED: Final = "prefix_changed"
OTHER_NAMESPACE: Final = "other_namespace"
NEVER_SEEN: Final = "never_seen"
CAUSES: Final = (
    *(CACHE_OFF, TOO_SHORT, NOT_LOADED, NOT_KEPT, EVICTED, EXPIRED, DROPPED),
    *(PREFIX_CHANGED, OTHER_NAMESPACE, NEVER_SEEN),
)

LOSS_TOKENS = Declared(
    "counter",
    "radixserve_prefix_loss_tokens_total",
    "tokens",
    "Prompt tokens that were not found in the cache, by why not; never_seen is no loss. Compared "
    "with the newest prompt of the same session and with the recent ones that are most alike",
    ("cause",),
    values=(CAUSES,),
)

PINNED_TOKENS = Declared(
    "gauge",
    "radixserve_pinned_tokens",
    "tokens",
    "Tokens on the device that pins hold; what several hold counts once",
)

COUNTERS: Final = (
    LOSS_TOKENS,
    RUNNING,
    WAITING,
    BACKLOG_TOKENS,
    PREFILL_RATE,
    PROMPT_TOKENS,
    TENANT_PROMPT_TOKENS,
    TENANT_REQUESTS,
    ADAPTERS,
    ADAPTER_BYTES,
    GENERATED_TOKENS,
    DRAFT_TOKENS,
    PREEMPTIONS,
    STEP_FAULTS,
    STEPS,
    GIVEN_UP,
    STEP_SECONDS,
    STEP_TOKENS,
    STEP_SEQUENCES,
    HIT_TOKENS,
    SAVED_SECONDS,
    PINNED_TOKENS,
)
