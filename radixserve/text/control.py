"""Keeps control tokens out of text that a client wrote: their names are plain text there, while
those that the chat template writes are tokens.

A tokenizer finds its added tokens wherever their names appear, so a user who types `<|im_start|>`
would open a turn. Here such a text is encoded by a copy of the tokenizer whose control tokens have
other, secret names: names that the template wrote are replaced by the secret ones, and everything
else is ordinary text to that copy. In all other respects (normalising, splitting, merging, ids) the
copy behaves like the tokenizer. Knows no templates and no requests.
"""

from __future__ import annotations

import itertools
import json
import logging
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import tokenizers

from radixserve.errors import BadRequest
from radixserve.text.breaks import Breaks, any_of
from radixserve.token_names import rename_tokens, spelled_by_text

log = logging.getLogger(__name__)

_FIRST_MARK = 0xF0000  # the first private-use character of plane 15
_Places = list[tuple[int, int]]  # control tokens in a text: characters [start, end) of each
Render = Callable[[Callable[[str], str]], str]
"""Renders a conversation after everything in it that a client wrote went through a function."""


class ControlTokens:
    """The control tokens of one tokenizer."""

    def __init__(
        self, backend: tokenizers.Tokenizer, written: str = "", template: str = ""
    ) -> None:
        """`written` is what the chat template, whose source is `template`, writes around ordinary
        words.

        Control tokens are the special tokens, and those added tokens that `written` has: some
        models do not mark the tokens that open their turns as special. Other added tokens, such as
        `<think>`, are part of answers as text, so they stay what they are in a conversation that
        the client sends back.
        """
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._id_of: dict[str, int] = {
            token.content: token_id
            for token_id, token in added.items()
            if token.special or (token.content in written and not token.content.isalnum())
            if not token.content.isspace()
        }
        self._pattern = any_of(self._id_of)
        self._breaks = Breaks(self._id_of, template)
        # A normaliser may turn text that does not look like a control token into one.
        self._anywhere = backend.normalizer is not None and any(
            token.normalized for token in added.values() if token.content in self._id_of
        )

    def may_occur(self, texts: Iterable[str]) -> bool:
        """Whether the tokenizer could find a control token in one of `texts`. Costs 10 ns per
        character of ordinary text.
        """
        return self._anywhere or any(self._pattern.search(text) for text in texts)

    def encode_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; the only control tokens among them are those that the tokenizer
        adds.

        Raises:
            BadRequest: this tokenizer cannot take control tokens as plain text.
        """
        return self._copy_or_refusal().encode(text, add_special_tokens)

    def may_be_made(self, texts: Iterable[str]) -> bool:
        """Whether a chat template could make a control token of `texts`, for example by writing one
        right behind the other.
        """
        return self._anywhere or any(map(self._breaks.needs_mark, texts))

    def encode_rendered(
        self, rendered: str, render: Render, marks: str, *, add_special_tokens: bool = False
    ) -> list[int]:
        """Token ids of a rendered conversation, in which the template's control tokens are tokens.

        `render` gives the same conversation with everything that a client wrote changed by a
        function. With a mark within everything that could be a control token, those that are still
        there are the template's. Where that changes more than the marks, which a template that
        looks at the text may cause, the marks go around whole control tokens: one without marks is
        then the template's, if that gives the same ones. `rendered` is what is encoded wherever
        possible, else the conversation with marks, without them.

        Raises:
            BadRequest: this tokenizer cannot take control tokens as plain text.
        """
        text = self._with_secret_names(rendered, render, marks)
        if text is None:
            return _encode(self._backend, rendered, add_special_tokens)
        return self._copy_or_refusal().encode(text, add_special_tokens)

    def _with_secret_names(self, rendered: str, render: Render, marks: str) -> str | None:
        """The text that the copy encodes; None if all control tokens of `rendered` are the
        template's.
        """
        split = _unescaped(render(lambda text: self._breaks.mark(text, marks[0])), marks)
        is_same = _without(split, marks) == rendered
        if is_same and not self._anywhere and self._count(split) == self._count(rendered):
            return None
        copy = self._copy_or_refusal()
        places = copy.places(split)
        if not is_same:
            text = self._looked_at(copy, rendered, render, marks, _cut(split, places))
            if text is not None:
                return text
        return _without(copy.rename(split, places, [True] * len(places)), marks)

    def _looked_at(
        self, copy: _Copy, rendered: str, render: Render, marks: str, expected: list[str]
    ) -> str | None:
        """As `_with_secret_names`, of a template that looks at the text; None where its control
        tokens are not the `expected` ones.
        """
        around = rf"{marks[0]}\g<0>{marks[1]}"
        marked = _unescaped(render(lambda text: self._pattern.sub(around, text)), marks)
        marked_places, places = copy.places(marked), copy.places(rendered)
        own = [not _is_marked(marked, place, marks) for place in marked_places]
        if _cut(marked, itertools.compress(marked_places, own)) != expected:
            return None
        if _cut(marked, marked_places) == _cut(rendered, places):
            return copy.rename(rendered, places, own)
        return _without(copy.rename(marked, marked_places, own), marks)

    def _count(self, text: str) -> int:
        """How many control tokens `text` has."""
        return sum(1 for _ in self._pattern.finditer(text))

    def _copy_or_refusal(self) -> _Copy:
        if self._copy is None:
            raise BadRequest("this tokenizer cannot take the names of control tokens as plain text")
        return self._copy

    @cached_property
    def _copy(self) -> _Copy | None:
        """The copy, made when first needed (a second or two for a large vocabulary); None if it
        cannot be made.
        """
        try:
            return _Copy(self._backend, self._id_of)
        except Exception as error:  # the library raises bare Exception
            log.error("control tokens cannot be taken as plain text: %s", error)
            return None


class _Copy:
    """A copy of a tokenizer whose control tokens have secret names and the same ids."""

    def __init__(self, backend: tokenizers.Tokenizer, id_of: dict[str, int]) -> None:
        """Raises the library's Exception if the tokenizer cannot be built."""
        state = json.loads(backend.to_str())
        secret, plain = secrets.token_hex(16), spelled_by_text(state["model"], id_of)
        # No normaliser changes lower-case letters, digits and a dash.
        self._secret_of = {name: f"<{secret}-{id_of[name]}>" for name in id_of if name not in plain}
        self._pattern = any_of(self._secret_of)
        rename_tokens(state, self._secret_of)
        state["decoder"] = None
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        for name, secret_name in self._secret_of.items():
            if self._backend.token_to_id(secret_name) != id_of[name]:
                raise ValueError(f"{name!r} would get another id")

    def places(self, text: str) -> _Places:
        """The places of control tokens' names in `text`."""
        return [found.span() for found in self._pattern.finditer(text)]

    def rename(self, text: str, places: _Places, own: list[bool]) -> str:
        """`text` with the secret names at those `places` that are `own`."""
        parts, done = [], 0
        for (start, end), is_own in zip(places, own, strict=True):
            name = text[start:end]
            parts += [text[done:start], self._secret_of[name] if is_own else name]
            done = end
        return "".join([*parts, text[done:]])

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; only secret names become control tokens."""
        return _encode(self._backend, text, add_special_tokens)


def unused_marks(texts: Sequence[str]) -> str:
    """Two private-use characters that occur in none of `texts`, not even as escapes of JSON."""
    codes = range(_FIRST_MARK, sys.maxunicode)
    unused = (
        mark
        for mark in map(chr, codes)
        if not any(mark in text or _escaped(mark) in text for text in texts)
    )
    return next(unused) + next(unused)


def _encode(backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    [encoding] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    ids: list[int] = encoding.ids
    return ids


def _without(text: str, marks: str) -> str:
    return text.translate(dict.fromkeys(map(ord, marks)))


def _escaped(mark: str) -> str:
    """How a template that writes JSON in ASCII writes `mark`."""
    return json.dumps(mark)[1:-1]


def _unescaped(text: str, marks: str) -> str:
    for mark in marks:
        text = text.replace(_escaped(mark), mark)
    return text


def _cut(text: str, places: Iterable[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in places]


def _is_marked(text: str, place: tuple[int, int], marks: str) -> bool:
    start, end = place
    return text.endswith(marks[0], 0, start) and text.startswith(marks[1], end)
