"""Stand-ins at the seams: an engine without a model, and a tokenizer whose token ids are bytes.

`FakeEngine` implements `EngineClient`. Its answer repeats the prompt's tokens, so every answer can
be predicted from the request; faults and pauses are plain attributes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import cycle, islice
from typing import Any, TypeVar

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from radixserve.config import Settings
from radixserve.errors import ApiError, Unavailable
from radixserve.front.adapters import Adapters
from radixserve.front.live_settings import LiveSettings
from radixserve.front.stream import Stream
from radixserve.grammar import Vocabulary, check
from radixserve.questions import (
    Configure,
    Configured,
    Drop,
    Dropped,
    Explain,
    Explanation,
    ListPins,
    Pin,
    PinList,
    Pinned,
    Question,
    ShowTree,
    Summarize,
    Summary,
    Tree,
    Unpin,
    Unpinned,
)
from radixserve.request import Grammar, PinWish, Request
from radixserve.step import (
    EngineInfo,
    EngineStats,
    FinishReason,
    PinOutcome,
    TierLoad,
    TokenEvent,
    TokenLogprob,
)
from radixserve.text.conversation import Conversation
from radixserve.text.detokenizer import Detokenizer
from radixserve.text.messages import Encoded
from radixserve.text.tokenizer import Tokenizer

T = TypeVar("T")

EOS = 256
VOCAB = 258  # 256 bytes, <eos>, <turn>
INFO = EngineInfo(
    vocab_size=VOCAB,
    context_length=512,
    eos_token_ids=(EOS,),
    max_request_tokens=512,
    num_slots=4096,
    pool_slots=4096,
    slot_bytes=64,
    device="none",
    dtype="float32",
    checkpoint_dtype="bfloat16",
    kv_dtype="float32",
    attention="fake",
    exact=True,
)
TEMPLATE = "{% for m in messages %}<turn>{{ m.role }}: {{ m.content }}\n{% endfor %}"


class LocalTokenizer(Detokenizer):
    """A `TokenizerClient` that tokenises here and now."""

    def __init__(self, loaded: PreTrainedTokenizerFast, **options: Any) -> None:
        super().__init__(loaded.backend_tokenizer)
        self.tokenizer = Tokenizer(loaded, **options)
        self.chat_template = self.tokenizer.template.text
        self.has_chat_template = self.chat_template is not None
        self.has_tools = self.tokenizer.facts.has_tools
        self.has_reasoning = self.tokenizer.template.has_reasoning
        self.drops_reasoning = self.tokenizer.facts.drops_reasoning

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def encode_chat(self, conversation: Conversation) -> Encoded:
        return self.tokenizer.encode_chat(conversation)

    async def check_grammar(self, grammar: Grammar) -> None:
        check(grammar, self._vocabulary)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer.to_json())


def byte_tokenizer(**options: Any) -> LocalTokenizer:
    """Token i is byte i; the chat template writes one `<turn>role: content` line per message.

    `options` are those of `Tokenizer`.
    """
    chars = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of_char().__getitem__)
    backend = Backend(models.BPE(vocab={char: i for i, char in enumerate(chars)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken("<eos>", special=True), AddedToken("<turn>", special=True)]
    )
    loaded = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE)
    return LocalTokenizer(loaded, **options)


def _byte_of_char() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def repeat_prompt(request: Request) -> Sequence[int]:
    """As many tokens as asked for: the prompt's, again and again."""
    return list(islice(cycle(request.prompt_ids), request.sampling.max_tokens))


def logprob_of(token_id: int) -> TokenLogprob:
    """What the fake says of any token: it is the likeliest, the next ids follow."""
    top = [((token_id + i) % VOCAB, -0.5 * (i + 1)) for i in range(20)]
    return TokenLogprob(token_id, -0.5, top)


ANSWERS: dict[type[Question[Any]], Any] = {
    Drop: Dropped(),
    Explain: Explanation(matched={"device": 0}, lost={}),
    ListPins: PinList([]),
    Pin: Pinned(status="accepted", id="pin_1", tokens=4, wanted=4, seconds_left=60.0),
    Unpin: Unpinned(4),
    ShowTree: Tree(nodes=[], num_nodes=0, num_tokens=0),
    Configure: Configured(evicted_tokens={"device": 7}),
    Summarize: Summary(enabled=True, tiers=[], nodes=0, num_namespaces=0, namespaces=[]),
}


class FakeEngine:
    """Yields one token per event loop turn, and keeps account of what is live."""

    def __init__(self, info: EngineInfo = INFO) -> None:
        self.info: EngineInfo | None = info
        self.live_settings = LiveSettings(Settings())
        self.live_settings.take_engine(info)
        self.adapters = Adapters([], self._ask_about_adapters, lambda: None)
        self.stats = EngineStats()
        self.unready_reason: str | None = None
        self.answer: Callable[[Request], Sequence[int]] = repeat_prompt
        self.logprob: Callable[[int], TokenLogprob] | None = None
        self.num_cached = 0
        self.loads: tuple[TierLoad, ...] = ()  # of every request, told with its first token
        self.preempted: tuple[float, ...] = ()  # likewise
        self.most_pinned = 1000  # tokens; what a request wishes to pin beyond them is clipped
        self.refuse_after: int | None = (
            None  # so many submissions are accepted, the next is refused
        )
        self.hold_at: int | None = None  # before the token of this number: wait for `go_on`
        self.go_on = asyncio.Event()
        self.held = asyncio.Event()  # set when a request waits
        self.fail_at: int | None = None  # instead of the token of this number: `failure`
        self.failure: FinishReason = "error"
        self.error = "the fake failed"
        self.tokens_per_event = 1
        self.answers = dict(ANSWERS)  # to questions
        self.asked: list[Question[Any]] = []
        self.seen: list[Request] = []
        self.live: dict[str, Request] = {}
        self.aborted: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def refusal_reason(self) -> str | None:
        return None if self.unready_reason == "restarting" else self.unready_reason

    def submit(self, stream: Stream) -> None:
        if self.refusal_reason is not None:
            raise Unavailable(self.refusal_reason, code="server_not_ready")
        if self.refuse_after is not None and len(self.seen) >= self.refuse_after:
            raise Unavailable("the queue is full", retry_after=7)
        request = stream.request
        self.seen.append(request)
        self.live[request.id] = request
        stream.accept(lambda left: self.abort(left.request.id))
        self._tasks.add(task := asyncio.create_task(FakeAnswer(self, stream).run()))
        task.add_done_callback(self._tasks.discard)

    async def ask(self, question: Question[T]) -> T:
        if self.unready_reason not in (None, "draining"):
            raise Unavailable(self.unready_reason, code="server_not_ready")
        self.asked.append(question)
        answer: T = self.answers[type(question)]
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def _ask_about_adapters(self, question: Question[T], seconds: float | None) -> T:
        return await self.ask(question)

    async def configure(self, changes: dict[str, Any], who: str, why: str) -> Configured:
        values = self.live_settings.checked(changes)
        question = self.live_settings.for_engine(values)
        did = Configured() if question is None else await self.ask(question)
        self.live_settings.take(values, who, why)
        return did

    def abort(self, request_id: str) -> None:
        if self.live.pop(request_id, None) is not None:
            self.aborted.append(request_id)


class FakeAnswer:
    """Pushes the events of one request of `FakeEngine`, each when the one before was fetched."""

    def __init__(self, engine: FakeEngine, stream: Stream) -> None:
        self._engine = engine
        self._stream = stream
        self._request = stream.request
        self._tokens = list(engine.answer(stream.request))
        self._num_sent = 0

    async def run(self) -> None:
        engine, request_id = self._engine, self._request.id
        while request_id in engine.live:
            if engine.hold_at == self._num_sent:
                engine.held.set()
                await engine.go_on.wait()
            await asyncio.sleep(0)
            if request_id in engine.live and self._stream.is_waiting:
                event = self._next_event()
                if event.finish is not None:
                    del engine.live[request_id]
                self._stream.push(event)

    def _outcome(self, wish: PinWish) -> PinOutcome:
        held = min(wish.num_tokens, self._engine.most_pinned)
        if not held:
            return PinOutcome("refused", 0)
        return PinOutcome("accepted" if held == wish.num_tokens else "clipped", held)

    def _next_event(self) -> TokenEvent:
        engine, sampling = self._engine, self._request.sampling
        event = TokenEvent(request_id=self._request.id)
        if self._num_sent == 0:
            event.num_cached, event.queue_seconds = engine.num_cached, 0.001
            event.loads, event.preempted = engine.loads, engine.preempted
            event.pins = tuple(self._outcome(wish) for wish in self._request.pins)
            if sampling.prompt_logprobs is not None:
                event.prompt_logprobs = [
                    logprob_of(token) for token in self._request.prompt_ids[1:]
                ]
        if engine.fail_at == self._num_sent:
            event.finish, event.error = engine.failure, engine.error
            return event
        for token in self._tokens[self._num_sent : self._num_sent + engine.tokens_per_event]:
            event.token_ids.append(token)
            self._num_sent += 1
            if token in sampling.stop_token_ids and self._num_sent > sampling.min_tokens:
                event.finish, event.stop_token_id = "stop", token
                break
        if event.finish is None and self._num_sent >= min(len(self._tokens), sampling.max_tokens):
            event.finish = "length"
        if sampling.logprobs is not None:
            event.logprobs = [(engine.logprob or logprob_of)(token) for token in event.token_ids]
        return event
