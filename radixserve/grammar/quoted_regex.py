"""A regular expression for text that is written inside a JSON string; see `quoted_lark`.

The expression is read atom by atom. Operators stay, and a character or a class of characters
becomes what is written for it. The syntax is that of Rust's regex crate.
"""

from __future__ import annotations

import re

from radixserve.errors import BadRequest

SHORT_NAMES = {'"': '"', "\\": "\\\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
"""The characters that have a short name in JSON, and the name as a regular expression."""

_AS_IT_IS = r'[^"\\\x00-\x1f]'  # the characters that are written as they are
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}

_ATOM = re.compile(
    r"""
    (?P<flags> \( \? (?P<on> [a-z]*+ ) (?: - (?P<off> [a-z]++ ) )? (?P<ends> [:)] ) )
    | (?P<opens> \( (?: \? P? < \w++ > )? )
    | (?P<operator> [)|*+?^$] | \{ [\d,]*+ \} )
    | (?P<code> \\ (?: x [0-9A-Fa-f]{2} | u [0-9A-Fa-f]{4} | U [0-9A-Fa-f]{8}
        | [xuU] \{ [0-9A-Fa-f]{1,6} \} ) )
    | (?P<class> \. | \\ [dDsSwW] | \\ [pP] (?: \{ [^}]*+ \} | \w )
        | \[ \^?+ \]?+ (?: \\. | [^\]\\] )*+ \] )
    | \\ (?P<escaped> . )
    | (?P<plain> [^\\\[] )
    """,
    re.VERBOSE | re.DOTALL,
)
_ASSERTIONS = "bBAzGZ<>"
_CATEGORY = re.compile(r"\\p(?:\{[LMNSZ]\w*\}|[LMNSZ])")  # without a character of a short name
_SETS = re.compile(r"(?<!\\)\[|&&|--|~~|\\[pP]|\\[xuU]\{")  # Python knows none of these


def quoted_regex(pattern: str, flags: str = "", *, allow_classes: bool = True) -> str:
    """The regular expression of what stands between the quotes of a JSON string whose text matches
    `pattern` with these flags. Without `allow_classes` it has no classes with characters that are
    escaped. O(len(pattern)).

    Raises:
        BadRequest: it is malformed, or has an assertion or a class that cannot be written so.
    """
    if "x" in flags:
        raise _unsupported("the flag x")
    kept = "".join(sorted({*flags} & {*"im"}))
    parts, dot_is_all, at = [f"(?{kept})" if kept else ""], ["s" in flags], 0
    while at < len(pattern):
        atom = _ATOM.match(pattern, at)
        if atom is None or not dot_is_all:
            text = f"The regular expression /{pattern[:60]}/ is not valid."
            raise BadRequest(text, code="invalid_value")
        _follow(atom, dot_is_all)
        changed = _quoted_atom(atom, dot_is_all=dot_is_all[-1:] == [True])
        if atom["class"] and changed != atom[0] and not allow_classes:
            raise _unsupported(
                f"{atom[0][:60]} in a grammar with '%ignore' or rules that refer to themselves"
            )
        parts.append(changed)
        at = atom.end()
    return "".join(parts)


def _follow(atom: re.Match[str], dot_is_all: list[bool]) -> None:
    """Keep account of what a dot means, group by group."""
    if atom["flags"]:
        on, off = atom["on"], atom["off"] or ""
        if "x" in on:
            raise _unsupported("the flag x")
        inside = (dot_is_all[-1] or "s" in on) and "s" not in off
        if atom["ends"] == ":":
            dot_is_all.append(inside)
        else:
            dot_is_all[-1] = inside
    elif atom["opens"]:
        dot_is_all.append(dot_is_all[-1])
    elif atom["operator"] == ")":
        dot_is_all.pop()


def _quoted_atom(atom: re.Match[str], *, dot_is_all: bool) -> str:
    written = atom[0]
    if atom["class"]:
        return quoted_class(written, _members(written, dot_is_all=dot_is_all))
    if atom["code"]:
        return quoted_character(_of_code(written), written)
    if atom["escaped"]:
        if atom["escaped"] in _ASSERTIONS:
            raise _unsupported(f"the assertion {written}")
        return quoted_character(_ESCAPES.get(atom["escaped"], atom["escaped"]), written)
    return quoted_character(written, written) if atom["plain"] else written


def quoted_character(character: str, written: str) -> str:
    """What is written for a character, which is `written` if that is the character itself."""
    if character in SHORT_NAMES:
        return rf"(?-i:\\{SHORT_NAMES[character]})"
    return written if character >= " " else rf"(?-i:\\u{ord(character):04x})"


def quoted_class(written: str, members: str) -> str:
    """What is written for one character of a class; `members` are those with a short name."""
    if not members:
        return written
    names = "".join(SHORT_NAMES[each] for each in members)
    plain = _AS_IT_IS if written == "." else f"[{written}&&{_AS_IT_IS}]"
    return rf"(?:{plain}|(?-i:\\[{names}]))"


def _members(written: str, *, dot_is_all: bool) -> str:
    """The characters with a short name that belong to a class."""
    if written == ".":
        return "".join(each for each in SHORT_NAMES if dot_is_all or each != "\n")
    known = _CATEGORY.sub("", written)
    if known in ("", "[]", "[^]"):  # nothing but categories
        return "".join(SHORT_NAMES) if known == "[^]" else ""
    if _SETS.search(known, 1 if known[0] == "[" else 0):
        raise _unsupported(f"the class {written[:60]}")
    try:
        belongs = re.compile(known.replace("||", "|"), re.ASCII).match
    except (re.error, OverflowError) as error:
        raise _unsupported(f"the class {written[:60]}") from error
    return "".join(each for each in SHORT_NAMES if belongs(each))


def _of_code(written: str) -> str:
    code = int(written[2:].strip("{}"), 16)
    if code > 0x10FFFF:
        raise BadRequest(f"There is no character {written}.", code="invalid_value")
    return chr(code)


def _unsupported(what: str) -> BadRequest:
    text = f"A regular expression for a text inside JSON cannot have {what}."
    return BadRequest(text, code="unsupported_parameter")
