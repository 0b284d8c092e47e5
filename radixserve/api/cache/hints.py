"""Guesses at what makes prompts differ that were meant to begin alike: the usual causes of lost
hits, found in the text on both sides of the first difference.
"""

from __future__ import annotations

import re
from typing import Final

from radixserve.api.cache.regions import Region

_NEAR: Final = 48  # characters on both sides of the difference in which a cause is looked for
_CUT: Final = 100  # characters before it, in which a name or key may begin
_MONTH: Final = (
    "(Jan(uary)?|Feb(ruary)?|Mar(ch)?|Apr(il)?|May|June?|July?|Aug(ust)?|Sept?(ember)?"
    "|Oct(ober)?|Nov(ember)?|Dec(ember)?)"
)
_CLOCK: Final = re.compile(
    r"\b\d{1,2}:\d{2}(:\d{2})?\b|\b\d{1,2} ?[AaPp]\.?[Mm]\b"  # 10:42, 9 am
    r"|\b(19|20)\d{2}[-/]\d{1,2}([-/]\d{1,2}([T ][\d:]*)?)?|\b(19|20)\d{2}[01]\d[0-3]\d(T|\b)"
    r"|\b\d{1,2}/\d{1,2}/(\d{2}){1,2}\b|\b\d{1,2}\.\d{1,2}\.(19|20)\d{2}\b"  # 11/28/2026
    rf"|\b\d{{1,2}}(st|nd|rd|th)?\.?[ -]{_MONTH}\b"  # 28 Nov
    rf"|\b{_MONTH}\.?[ -]\d{{1,4}}(st|nd|rd|th)?\b"  # May 4, May 2026
    r"|\b(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b|\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun),? \d"
    r"|\b(January|February|August|September|October|November|December)\b"
    r"|\b1[67]\d{8,11}\b"  # a Unix time, in seconds to microseconds
)
_ID: Final = re.compile(
    r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-|\b(?=[0-9a-f]*\d)(?=[0-9]*[a-f])[0-9a-f]{12,}\b"
    r"|\b(req|call|toolu|msg|resp|session|trace)[-_][A-Za-z0-9]{6,}"
)
_BILLING: Final = re.compile(r"billing|x-anthropic-|cc_version|cch=", re.IGNORECASE)
_NAME: Final = re.compile(r'"name"\s*:\s*"([^"]{1,64})"')
_KEY: Final = re.compile(r'"([^"\\]{1,64})"\s*:')
_THINK: Final = re.compile(r"<think|<\|channel\|>analysis|<seed:think|\[THINK\]")

DATE: Final = (
    "There is a date or a clock here. Put it behind everything that stays the same, for example "
    "into the last message."
)
IDENTIFIER: Final = (
    "There is an id here that differs with every request. Leave it out of the prompt."
)
BILLING: Final = (
    "There is a billing or version line here. The setting volatile_prefix leaves such lines out."
)
TOOL_ORDER: Final = "The same tools come in another order. Send them in a fixed order."
KEY_ORDER: Final = "JSON has the same keys in another order. Write it with a fixed order of keys."
REASONING: Final = (
    "One of the prompts has reasoning here and the other has not. Templates "
    "drop it from earlier turns; such turns are computed again."
)


def hints(before: str, mine: str, theirs: str, region: Region | None) -> list[str]:
    """What may be the cause. `before` is the common text in front of the difference, `mine` and
    `theirs` what follows it in this prompt and in the earlier one.
    """
    both = _shared(mine, theirs)  # characters that the first tokens that differ have in common
    before, mine, theirs = before + mine[:both], mine[both:], theirs[both:]
    near = [before[-_NEAR:] + each[:_NEAR] for each in (mine, theirs)]
    at = len(before[-_NEAR:])
    found = []
    if any(map(_BILLING.search, near)):
        found.append(BILLING)
    elif any(_is_at(_CLOCK, each, at) for each in near):
        found.append(DATE)
    elif any(_is_at(_ID, each, at) for each in near):
        found.append(IDENTIFIER)
    texts = [before[-_CUT:] + each for each in (mine, theirs)]  # the difference may cut a name
    in_tools = region is not None and region.kind == "tools"
    if in_tools and _reordered(*map(_NAME.findall, texts)):
        found.append(TOOL_ORDER)
    elif _reordered(*map(_KEY.findall, texts)):
        found.append(KEY_ORDER)
    heads = [bool(_THINK.search(each[:_NEAR])) for each in (mine, theirs)]
    if heads[0] != heads[1]:
        found.append(REASONING)
    return found


def _shared(mine: str, theirs: str) -> int:
    """With how many same characters both begin."""
    pairs = enumerate(zip(mine, theirs, strict=False))
    differing = (index for index, (ours, other) in pairs if ours != other)
    return next(differing, min(len(mine), len(theirs)))


def _is_at(pattern: re.Pattern[str], text: str, at: int) -> bool:
    """Whether the pattern is found in `text` at the difference, which is at position `at`."""
    return any(found.start() <= at <= found.end() for found in pattern.finditer(text))


def _reordered(one: list[str], other: list[str]) -> bool:
    """Whether two lists go on with the same entries in another order where they first differ: each
    has the next entry of the other one later.
    """
    for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return mine in other[index:] and theirs in one[index:]
    return False
