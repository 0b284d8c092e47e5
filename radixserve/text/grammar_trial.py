"""Tries a grammar in a forked process, so that nothing a grammar does can harm the process that
asks: a stack that overflows or a limit that is reached ends the fork, and no tokenizer has to be
loaded again.

A first trial is short and has the usual priority: 99 of 100 schemas of real programs need a fifth
of its time. A second one may take as long as the caller allows, but only processor time that nobody
else wants (SCHED_IDLE). A thread of the lowest usual priority would still get its turn of some
milliseconds now and then, in which a thread of the engine cannot wake, and the others of its step
wait for that one. What is left is the cost of taking the processor away from it again, hundreds of
times a second; so it also rests half of the time. On a busy machine it may get next to nothing;
then its end says nothing about the grammar.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import time
from collections.abc import Callable

import msgspec

from radixserve.background import yield_to_others
from radixserve.errors import BadRequest
from radixserve.text.messages import Checked, Failed, grammar_took_too_long

FIRST_SECONDS = 0.05  # of processor time
TURN_SECONDS = 0.1  # for which a second trial runs, and then rests
FAIR_SHARE = 0.25  # of its time; a second trial that got less of a processor was held up by others
_STACK_BYTES = 8 * 1024 * 1024  # the engine, which compiles again, has eight times as much
_MOST_CHARS = 2_000  # of a refusal; it may name a place by a path of any length
_MOST_BYTES = 65_536  # that a verdict may take, and that a pipe holds
_PR_SET_PDEATHSIG = 1
_VERDICT = msgspec.msgpack.Decoder(Checked | Failed)


def try_grammar(check: Callable[[], None], seconds: float, *, is_first: bool) -> Checked | Failed:
    """Call `check` in a fork of this process, which must have no other thread: whether it returned,
    or why the grammar is refused. Ends within `seconds`. It is not done if it needs longer than a
    first trial may take, if a second one got too little of the processors to tell, or if the system
    has no process for it.
    Cost: some milliseconds for the fork, more the more memory the process has.
    """
    ours, theirs = os.pipe()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        return Checked(is_done=False)
    if child == 0:
        _run(check, theirs, parent, is_first)
    os.close(theirs)
    try:
        until = time.monotonic() + seconds
        told = _read(ours, until) if is_first else _read_in_turns(ours, until, child)
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)  # it is not waited for yet, so the id is still its own
        _, status, used = os.wait4(child, 0)
    if told:
        verdict: Checked | Failed = _VERDICT.decode(told)
        return verdict
    if is_first and (told is None or os.WTERMSIG(status) == signal.SIGPROF):
        return Checked(is_done=False)
    if told is not None:
        return _ended(status)
    if used.ru_utime + used.ru_stime < FAIR_SHARE * seconds:
        return Checked(is_done=False)
    return grammar_took_too_long(seconds)


def _run(check: Callable[[], None], told: int, parent: int, is_first: bool) -> None:
    """The whole life of the fork."""
    try:
        gc.disable()  # it would write to pages that are shared with the parent
        _die_with(parent)
        limit = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a grammar's end must not fill the disk
        if is_first:
            signal.setitimer(signal.ITIMER_PROF, FIRST_SECONDS)
        else:
            yield_to_others()
        os.write(told, msgspec.msgpack.encode(_verdict(check)))
    finally:
        os._exit(0)


def _verdict(check: Callable[[], None]) -> Checked | Failed:
    try:
        check()
    except BadRequest as refusal:
        return Failed(refusal.message[:_MOST_CHARS], refusal.param, refusal.code)
    return Checked(is_done=True)


def _die_with(parent: int) -> None:
    """Let the operating system end this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _read_in_turns(file: int, until: float, child: int) -> bytes | None:
    """The same as `_read`, while `child` runs for half of the time."""
    while (now := time.monotonic()) < until:
        if (told := _read(file, min(now + TURN_SECONDS, until))) is not None:
            return told
        os.kill(child, signal.SIGSTOP)
        time.sleep(TURN_SECONDS)
        os.kill(child, signal.SIGCONT)
    return None


def _read(file: int, until: float) -> bytes | None:
    """What the fork has written, all at once; empty if it ended before. None if neither comes in
    time.
    """
    waiting = select.poll()
    waiting.register(file, select.POLLIN)
    if not waiting.poll(max(0.0, until - time.monotonic()) * 1e3):
        return None
    return os.read(file, _MOST_BYTES)


def _ended(status: int) -> Failed:
    number = os.WTERMSIG(status)
    how = f"was ended by {signal.Signals(number).name}" if number else "said nothing"
    return Failed(
        f"The process that compiled the grammar {how}; the grammar may be nested too deeply or "
        "need too much memory.",
        None,
        "grammar_too_complex",
    )
