"""A request to the engine, as frozen values.

The front builds a `Request` from a validated body and sends it to the engine; nothing in it is
text, HTTP or a tensor, so the same value is logged, sent over the socket and kept for resubmission.
Every field is resolved: the front has filled in defaults, drawn a seed if the client gave none, and
checked every limit.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from radixserve.prefix import PUBLIC

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark", "gbnf"]


class Grammar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the whole output must match; `radixserve.grammar` says what each kind of source is.

    It stays text here, so that it can be sent, compared and kept.
    """

    kind: GrammarKind
    source: str = ""  # empty for json_object
    # Between the parts of JSON. A regular expression; "": none; None: as people write it.
    whitespace: str | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The parameters of drawing tokens. Two requests with equal prompts and equal `Sampling` get
    equal tokens.
    """

    max_tokens: int
    seed: int  # 0 .. 2**63-1; with the position it keys every random draw
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    min_tokens: int = 0  # as long as the output is shorter, no stop token is drawn
    stop_token_ids: tuple[int, ...] = ()  # with the end-of-text ids, unless `ignore_eos` is set
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()  # only these may be drawn; empty: all
    # The last token of each is not drawn behind the others.
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None  # None: not wanted; k: the drawn token and the k most likely
    # the same for the prompt's own tokens; such a request reads no cached K/V
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None


class PinWish(msgspec.Struct, frozen=True, kw_only=True):
    """The first `num_tokens` tokens of a prompt are to stay cached for `seconds` after their last
    use.
    """

    id: str  # of the pin
    num_tokens: int
    seconds: float


class Request(msgspec.Struct, tag="request", frozen=True, kw_only=True):
    """One sequence to generate, as it is sent to the engine. A body with n=3 and two prompts
    becomes six of these.
    """

    id: str
    prompt_ids: list[int]
    sampling: Sampling
    # Tokens of the answer that came from an earlier engine; the next one continues behind them.
    output_ids: list[int] = []
    namespace: str = PUBLIC  # requests share K/V only within a namespace
    num_public: int = 0  # leading tokens of the prompt that are in the namespace PUBLIC instead
    adapter: str = ""  # the digest of the adapter that computes it; "": none does
    # what requests of one conversation have in common, as far as bodies say it; "": nothing
    session: str = ""
    tenant: str = "default"  # whose request it is
    weight: float = 1.0  # the tenant's share of the computing, relative to others
    # the tenant's quota and floor of cached K/V: up to 1 a share of the budget, above bytes
    kv_quota: float = 0.0  # 0: none
    kv_floor: float = 0.0
    reads_cache: bool = True  # cached K/V may be used
    keeps_cache: bool = True  # computed K/V may be found by later requests
    pins: tuple[PinWish, ...] = ()
    renews_pins: bool = True  # pins that the prompt begins with last longer for it
    priority: int = 0  # lower is earlier
    # time.monotonic() seconds when the front accepted it; comparable between processes
    arrived: float = 0.0
