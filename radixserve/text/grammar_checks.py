"""Which grammars may go to the engine: asks tokenizer processes, in the right order, and remembers
the verdicts.

A grammar gets a first, short trial at once. If that is not enough it waits for the second, long
one, of which there is one at a time in the whole server; tenants take turns. So grammars that take
long wait for each other, and not the usual grammars and prompts for them, as long as there are two
processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from radixserve.errors import BadRequest, Unavailable
from radixserve.places import Places, Turns
from radixserve.request import Grammar
from radixserve.text.messages import Checked, CheckGrammar
from radixserve.text.verdicts import Verdicts

MAX_LONG = 8  # places for grammars that wait for the long trial
_FULL = "Too many grammars that take long wait to be checked."
_BUSY = "The server is too busy to check a grammar that takes so long to compile."


def _retrieve(trial: asyncio.Future[None]) -> None:
    """Look at a trial's exception, which asyncio logs if nobody does; its client may have left."""
    if not trial.cancelled():
        trial.exception()


class GrammarChecks:
    """The checks of one server."""

    def __init__(self, ask: Callable[[CheckGrammar], Awaitable[Checked]]) -> None:
        self._ask = ask
        self._verdicts = Verdicts()
        self._places = Places(MAX_LONG, _FULL)
        self._turns = Turns(1)

    async def check(self, grammar: Grammar) -> None:
        """See `TokenizerClient.check_grammar`. A grammar of a known verdict is not tried."""
        if not self._verdicts.has_passed(grammar) and not await self._try(grammar, is_first=True):
            await self._check_long(grammar)

    async def _check_long(self, grammar: Grammar) -> None:
        async with AsyncExitStack() as turn:
            with self._places.one():
                await turn.enter_async_context(self._turns.one())
            # A client that leaves does not end the trial, so it does not end its turn either.
            trial = asyncio.ensure_future(self._try_long(grammar, turn.pop_all()))
        trial.add_done_callback(_retrieve)
        await asyncio.shield(trial)

    async def _try_long(self, grammar: Grammar, turn: AsyncExitStack) -> None:
        async with turn:
            # The same one may have been before it.
            if not (self._verdicts.has_passed(grammar) or await self._try(grammar, is_first=False)):
                raise Unavailable(_BUSY)

    async def _try(self, grammar: Grammar, *, is_first: bool) -> bool:
        """Whether the trial was long enough, and the grammar has passed. Raises its refusal. A
        trial that was too short is not remembered.
        """
        try:
            checked = await self._ask(CheckGrammar(grammar, is_first=is_first))
        except BadRequest as refusal:
            self._verdicts.refused(grammar, refusal)
            raise
        if checked.is_done:
            self._verdicts.passed(grammar)
        return checked.is_done
