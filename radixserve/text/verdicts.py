"""What the check of a tokenizer process said about grammars. Agents send the same tools, and so the
same grammar, with every request; a client whose grammar is refused often sends it again. Knows no
process.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

from radixserve.errors import BadRequest
from radixserve.request import Grammar
from radixserve.text.messages import Failed

REFUSED_SECONDS = 60.0  # a refusal is kept, because it may have been for want of time or memory


class Verdicts:
    """Remembers grammars by their digests, the `most` used last. An entry takes some 200 bytes, and
    a refusal its sentence, however long its grammar is.
    """

    def __init__(self, most: int = 1024, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        # of each digest: None for a grammar that has passed; a refusal, and when it is forgotten
        self._kept: OrderedDict[bytes, tuple[Failed, float] | None] = OrderedDict()

    def has_passed(self, grammar: Grammar) -> bool:
        """Whether the grammar has passed; False if it is unknown. Takes 0.3 ms for a source of 250
        KB.

        Raises:
            BadRequest: it was refused, not long ago.
        """
        digest = _digest(grammar)
        if digest not in self._kept:
            return False
        self._kept.move_to_end(digest)
        kept = self._kept[digest]
        if kept is None:
            return True
        refusal, until = kept
        if self._clock() < until:
            raise BadRequest(refusal.message, param=refusal.param, code=refusal.code)
        return False

    def passed(self, grammar: Grammar) -> None:
        """Remember that `grammar` has passed."""
        self._keep(grammar, None)

    def refused(self, grammar: Grammar, refusal: BadRequest) -> None:
        """Remember why `grammar` was refused, for `REFUSED_SECONDS`."""
        failed = Failed(refusal.message, refusal.param, refusal.code)
        self._keep(grammar, (failed, self._clock() + REFUSED_SECONDS))

    def _keep(self, grammar: Grammar, verdict: tuple[Failed, float] | None) -> None:
        digest = _digest(grammar)
        self._kept[digest] = verdict
        self._kept.move_to_end(digest)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


def _digest(grammar: Grammar) -> bytes:
    """Equal for equal grammars only. A source need not be valid Unicode to be asked for."""
    digest = blake2b(repr((grammar.kind, grammar.whitespace)).encode(), digest_size=32)
    digest.update(grammar.source.encode(errors="surrogatepass"))
    return digest.digest()
