"""Guesses at what makes prompts differ that were meant to begin alike: the usual causes of lost
hits, found in the text on both sides of the first difference.
"""

from __future__ import annotations

import re
from typing import Final

from radixserve.api.cache.regions import Region

_NEAR: Final = 48  # characters on both sides of the difference in which a cause is looked for
_CLOCK: Final = re.compile(
    r"\b\d{1,2}:\d{2}(:\d{2})?\b|\b(19|20)\d{2}-\d{2}(-\d{2})?|\b1[67]\d{8,11}\b"
    r"|\b(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b"
    r"|\b(Jan|Febr)uary\b|\b(March|April|June|July|August)\b|\b(Septem|Octo|Novem|Decem)ber\b"
)
_ID: Final = re.compile(
    r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-|\b(?=[0-9a-f]*\d)(?=[0-9]*[a-f])[0-9a-f]{12,}\b"
    r"|\b(req|call|toolu|msg|resp|session|trace)[-_][A-Za-z0-9]{6,}"
)
_BILLING: Final = re.compile(r"billing|x-anthropic-|cc_version|cch=", re.IGNORECASE)
_NAME: Final = re.compile(r'"name"\s*:\s*"([^"]{1,64})"')
_CUT_NAME: Final = re.compile(r'"name"\s*:\s*"?[^"]{0,64}$')
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
    near = [before[-_NEAR:] + each[:_NEAR] for each in (mine, theirs)]
    found = []
    if any(map(_BILLING.search, near)):
        found.append(BILLING)
    elif any(map(_CLOCK.search, near)):
        found.append(DATE)
    elif any(map(_ID.search, near)):
        found.append(IDENTIFIER)
    cut = _CUT_NAME.search(before)  # the difference lies within a name
    begun = "" if cut is None else cut[0]
    names, others = (_NAME.findall(begun + each) for each in (mine, theirs))
    if region is not None and region.kind == "tools" and _reordered(names, others):
        found.append(TOOL_ORDER)
    elif _reordered(
        _KEY.findall(before[-200:] + mine[:400]), _KEY.findall(before[-200:] + theirs[:400])
    ):
        found.append(KEY_ORDER)
    heads = [bool(_THINK.search(each[:_NEAR])) for each in (mine, theirs)]
    if heads[0] != heads[1]:
        found.append(REASONING)
    return found


def _reordered(one: list[str], other: list[str]) -> bool:
    """Whether two lists begin with the same entries in another order."""
    n = min(len(one), len(other), 8)
    return n > 1 and one[:n] != other[:n] and sorted(one[:n]) == sorted(other[:n])
