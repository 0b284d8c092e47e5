"""The front's client of the tokenizer. Ids become text here; text and messages become ids in
processes that can be killed.

A chat template is a program written by the model's author. If one loops, or a text makes the
tokenizer's regular expression take exponential time, only that request ends: at a deadline its
process is killed and replaced. Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import tokenizers

from radixserve.errors import BadRequest, ModelRefused, StartupError, Unavailable
from radixserve.places import Places
from radixserve.request import Grammar
from radixserve.tenants import ASKING
from radixserve.text.conversation import Conversation
from radixserve.text.detokenizer import Detokenizer
from radixserve.text.grammar_checks import GrammarChecks
from radixserve.text.messages import (
    CHECK_SECONDS,
    NOT_UNICODE,
    TOO_DEEP,
    Checked,
    CheckGrammar,
    Encode,
    EncodeChat,
    Encoded,
    Failed,
    Question,
    Ready,
    Start,
    encode,
    grammar_took_too_long,
)
from radixserve.text.stream import TextStream
from radixserve.text.worker_process import WorkerDied, WorkerProcess

log = logging.getLogger(__name__)

_SHUTTING_DOWN = "The server is shutting down."
_GENERIC_TOOLS = (
    "the chat template has no place for tools: tools of requests are written into the system "
    "message as text (docs/api.md, Tools)"
)
# A process may die for a reason other than the question.
_MAX_TRIES = 2
_WAIT_SECONDS = 60.0  # wait for a free process, in addition to the deadline
_RESTART_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # delay before the n-th start in a row


class TokenizerClient(Protocol):
    """The interface of the tokenizer that handlers use; the server uses `ProcessTokenizer`."""

    @property
    def vocab_size(self) -> int:
        """See `Detokenizer.vocab_size`."""

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template; without one `encode_chat` always fails."""

    @property
    def chat_template(self) -> str | None:
        """See `ChatTemplate.text`."""

    @property
    def has_tools(self) -> bool:
        """Whether the template has a place for tools; if not, they are written into a message."""

    @property
    def has_reasoning(self) -> bool:
        """See `ChatTemplate.has_reasoning`."""

    @property
    def drops_reasoning(self) -> bool:
        """See `TemplateFacts.drops_reasoning`."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """See `Detokenizer.control_tokens`."""

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`. Raises BadRequest or Unavailable."""

    async def encode_chat(self, conversation: Conversation) -> Encoded:
        """See `Tokenizer.encode_chat`. Raises BadRequest or Unavailable."""

    async def check_grammar(self, grammar: Grammar) -> None:
        """Refuse a grammar that the engine could not use, or not soon enough. Raises BadRequest,
        without `param`, or Unavailable.
        """

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """See `Detokenizer.decode`."""

    def token_bytes(self, token_id: int) -> bytes:
        """See `Detokenizer.token_bytes`."""

    def token_text(self, token_id: int) -> str:
        """See `Detokenizer.token_text`."""

    def offsets(self, token_ids: Sequence[int], text: str) -> list[int]:
        """See `Detokenizer.offsets`."""

    def token_id(self, text: str) -> int | None:
        """See `Detokenizer.token_id`."""

    def stream(
        self,
        stops: Sequence[str] = (),
        *,
        continues: bool = False,
        min_tokens: int = 0,
        shown: frozenset[int] = frozenset(),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> TextStream:
        """See `Detokenizer.stream`."""


class ProcessTokenizer(Detokenizer):
    """A `TokenizerClient` whose text and messages are tokenised by `TokenizerProcesses`."""

    def __init__(self, ready: Ready, processes: TokenizerProcesses) -> None:
        super().__init__(tokenizers.Tokenizer.from_str(ready.tokenizer))
        self.has_chat_template = ready.chat_template is not None
        self.chat_template = ready.chat_template
        self.has_tools = ready.has_tools
        self.has_reasoning = ready.has_reasoning
        self.drops_reasoning = ready.drops_reasoning
        self.eos_token_id = ready.eos_token_id
        self._processes = processes
        self._checks = GrammarChecks(processes.ask_about)

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See `TokenizerClient.encode`."""
        return (await self._processes.ask(Encode(text, add_special_tokens))).ids

    async def encode_chat(self, conversation: Conversation) -> Encoded:
        """See `TokenizerClient.encode_chat`."""
        return await self._processes.ask(EncodeChat(conversation))

    async def check_grammar(self, grammar: Grammar) -> None:
        """See `TokenizerClient.check_grammar`."""
        await self._checks.check(grammar)


class _Job:
    """A question that waits for a free process. Raises UnicodeEncodeError, OverflowError or
    RecursionError for what cannot be sent.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.tenant = ASKING.get()
        self.frame = encode(question)
        self.answer: asyncio.Future[Encoded | Checked] = asyncio.get_running_loop().create_future()
        self.tries = 0

    def fail(self, error: Exception) -> None:
        if not self.answer.done():  # the client may have left
            self.answer.set_exception(error)


class _Jobs(asyncio.Queue[_Job]):
    """Jobs in the order in which they came, but tenants take turns."""

    def _init(self, maxsize: int) -> None:
        self._queue: dict[str, deque[_Job]] = {}  # by tenant; whose turn it is stands first

    def _put(self, item: _Job) -> None:
        self._queue.setdefault(item.tenant, deque()).append(item)

    def _get(self) -> _Job:
        tenant = next(iter(self._queue))
        jobs = self._queue.pop(tenant)
        job = jobs.popleft()
        if jobs:
            self._queue[tenant] = jobs
        return job


class TokenizerProcesses:
    """A fixed number of tokenizer processes and the questions that wait for them."""

    def __init__(
        self, start: Start, number: int, max_waiting: int, on_restart: Callable[[], None]
    ) -> None:
        """Questions beyond `max_waiting` places are refused; `on_restart` is called for each
        process that ended or was killed.
        """
        self._start = start
        self._number = number
        self.places = Places(max_waiting, "Too many prompts wait to be tokenised.")
        self._on_restart = on_restart
        self._jobs = _Jobs()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> ProcessTokenizer:
        """Start the first process and wait until it is ready; the others then start in the
        background.

        Raises:
            StartupError: the model is refused, or the process does not start; the message says why.
        """
        first = WorkerProcess()
        try:
            ready = await first.start(self._start)
            tokenizer = await asyncio.to_thread(ProcessTokenizer, ready, self)
        except BaseException as error:
            await first.kill()
            if isinstance(error, WorkerDied | OSError):
                raise StartupError(f"the tokenizer process {error} while it started") from error
            raise
        if tokenizer.has_chat_template and not tokenizer.has_tools:
            log.warning(_GENERIC_TOOLS)
        workers = [first, *[None] * (self._number - 1)]
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in workers]
        return tokenizer

    async def close(self) -> None:
        """Kill all processes, busy ones included; waiting questions are refused."""
        await asyncio.sleep(0)  # a task that has not begun would not kill its process
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._jobs.empty():
            self._jobs.get_nowait().fail(Unavailable(_SHUTTING_DOWN))

    async def ask(self, question: Encode | EncodeChat) -> Encoded:
        """The answer to `question`. Raises what `ask_about` raises."""
        answer = await self._ask(question)
        assert isinstance(answer, Encoded), type(answer)
        return answer

    async def ask_about(self, question: CheckGrammar) -> Checked:
        """Whether a grammar has passed.

        Raises:
            BadRequest: the question is refused, took too long, or ended two processes.
            Unavailable: too many questions wait already, or no process became free.
        """
        answer = await self._ask(question)
        assert isinstance(answer, Checked), type(answer)
        return answer

    async def _ask(self, question: Question) -> Encoded | Checked:
        with self.places.one():
            job = _job(question)
            self._jobs.put_nowait(job)
            try:
                async with asyncio.timeout(_WAIT_SECONDS + self._seconds(question)):
                    return await job.answer
            except TimeoutError:
                raise Unavailable("No tokenizer process is free.") from None

    def _seconds(self, question: Question) -> float:
        """How long a process may take to answer."""
        more = CHECK_SECONDS if isinstance(question, CheckGrammar) else 0.0
        return self._start.render_seconds + more

    async def _serve(self, worker: WorkerProcess | None) -> None:
        """Answer one question after another; start a new process whenever the last one has
        ended.
        """
        try:
            while True:
                if worker is None:
                    worker = await self._new_worker()
                job = await self._jobs.get()
                if job.answer.done():
                    continue
                if worker.pid is None:  # it ended while nobody asked, which is no try
                    log.error("a tokenizer process ended while it was idle")
                    self._jobs.put_nowait(job)
                elif await self._answer(worker, job):
                    continue
                await worker.kill()
                self._on_restart()
                worker = None
        finally:
            if worker is not None:
                await worker.kill()

    async def _new_worker(self) -> WorkerProcess:
        failures = 0
        while True:
            await asyncio.sleep(_RESTART_SECONDS[min(failures, len(_RESTART_SECONDS) - 1)])
            worker = WorkerProcess()
            try:
                await worker.start(self._start)
            except (WorkerDied, ModelRefused, OSError) as error:
                await worker.kill()
                log.error("a tokenizer process does not start: %s", error)
                failures += 1
            except BaseException:
                await worker.kill()
                raise
            else:
                return worker

    async def _answer(self, worker: WorkerProcess, job: _Job) -> bool:
        """Let `worker` answer `job`; returns whether it can answer further questions."""
        job.tries += 1
        try:
            answer = await worker.ask(job.frame, self._seconds(job.question))
        except TimeoutError:
            refusal = _too_long(job.question, self._start.render_seconds)
            log.error("a tokenizer process is killed: %s", refusal.message)
            job.fail(refusal)
            return False
        except WorkerDied as died:
            log.error("a tokenizer process %s", died)
            if job.tries < _MAX_TRIES:
                self._jobs.put_nowait(job)
            else:
                job.fail(_ended_processes(job.question, died))
            return False
        except BaseException:  # closing
            job.fail(Unavailable(_SHUTTING_DOWN))
            raise
        if isinstance(answer, Failed):
            job.fail(BadRequest(answer.message, param=answer.param, code=answer.code))
        elif not job.answer.done():
            job.answer.set_result(answer)
        return True


def _job(question: Question) -> _Job:
    try:
        return _Job(question)
    except UnicodeEncodeError as error:
        raise BadRequest(NOT_UNICODE, param=_param(question), code="invalid_value") from error
    except OverflowError as error:
        text = "A number in these messages or tools has more than 64 bits."
        raise BadRequest(text, param=_param(question), code="invalid_value") from error
    except RecursionError as error:
        raise BadRequest(TOO_DEEP, param=_param(question), code="invalid_value") from error


def _param(question: Question) -> str | None:
    return "messages" if isinstance(question, EncodeChat) else None


def _too_long(question: Question, seconds: float) -> BadRequest:
    if isinstance(question, CheckGrammar):
        refusal = grammar_took_too_long(seconds)
        return BadRequest(refusal.message, code=refusal.code)
    if isinstance(question, EncodeChat):
        return BadRequest(
            "Rendering these messages with the model's chat template and tokenising them took "
            f"longer than the limit of {seconds:g} s.",
            param=_param(question),
            code="render_timeout",
        )
    return BadRequest(
        f"Tokenising the text took longer than the limit of {seconds:g} s.", code="render_timeout"
    )


def _ended_processes(question: Question, died: WorkerDied) -> BadRequest:
    whats = {
        CheckGrammar: "checked the grammar",
        EncodeChat: "rendered and tokenised these messages",
        Encode: "tokenised the text",
    }
    what = whats[type(question)]
    return BadRequest(
        f"The process that {what} {died}, two times; it may have needed too much memory.",
        param=_param(question),
        code="render_failed",
    )
