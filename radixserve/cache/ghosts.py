"""What is remembered of evicted prefixes: keys and a small value for each, no tokens and no K/V.

Tokens are taken in chunks from position 0 on, and a chunk's key is a hash of its tokens and of the
key before it, so it stands for the whole prefix up to its end. Keys are Python's own hashes, 64
bits, keyed anew in each process. Two prefixes with one key would mislead a policy, never an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from radixserve.prefix import TOKEN_BYTES, Prefix

Value = TypeVar("Value")

CHUNK = 64  # tokens; about 200 bytes are remembered of each, beside megabytes of K/V


def chunk_keys(prefix: Prefix, chunk: int) -> Iterator[int]:
    """The key of every whole chunk of `chunk` tokens, from position 0 on; O(tokens). A chunk is in
    the namespace of its last token.
    """
    key, tokens, step = 0, prefix.tokens, chunk * TOKEN_BYTES
    for stop in range(step, len(tokens) + 1, step):
        namespace = prefix.namespace_at(stop // TOKEN_BYTES - 1)
        key = hash((key, namespace, tokens[stop - step : stop]))
        yield key


class Ghosts(Generic[Value]):
    """Evicted chunks, the oldest eviction first. The owner decides how many to remember."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._values: OrderedDict[int, Value] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        return len(self._values) * self.chunk

    def add(self, prefix: Prefix, num_tokens: int, value: Value) -> None:
        """Remember the chunks that end in the last `num_tokens` tokens of `prefix`, the last one
        as the oldest, because it is the first to go. O(tokens of `prefix`), if a chunk ends there.
        """
        first = (prefix.num_tokens - num_tokens) // self.chunk
        if first == prefix.num_tokens // self.chunk:
            return
        for key in reversed(list(chunk_keys(prefix, self.chunk))[first:]):
            self._values[key] = value
            self._values.move_to_end(key)

    def take(self, prefix: Prefix, depth: int) -> list[Value]:
        """The values of the chunks that follow the first `depth` tokens of `prefix`, up to one that
        is not remembered; they are forgotten. O(tokens of `prefix`).
        """
        found: list[Value] = []
        if not self._values:
            return found
        for index, key in enumerate(chunk_keys(prefix, self.chunk)):
            if index < depth // self.chunk:
                continue
            if key not in self._values:
                break
            found.append(self._values.pop(key))
        return found

    def shrink(self, num_tokens: int) -> None:
        """Forget the oldest evictions, until at most `num_tokens` tokens are remembered."""
        while self._values and self.num_tokens > num_tokens:
            self._values.popitem(last=False)
