"""Which tokens of a tokenizer are control tokens, and other names for them that no text spells.

A tokenizer finds its added tokens wherever their names appear in a text. Under other names they
keep their ids and are found nowhere. Knows the JSON of the `tokenizers` library and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def control_tokens(state: dict[str, Any]) -> dict[str, int]:
    """Names and ids of the tokens that are never part of a grammar's text: special tokens, and
    added ones in angle brackets, because some models do not mark their tags as special. `state` is
    a tokenizer's JSON.
    """
    found = {
        token["content"]: token["id"]
        for token in state["added_tokens"]
        if token["special"] or (token["content"][:1] == "<" and token["content"][-1:] == ">")
    }
    plain = spelled_by_text(state["model"], found)
    return {name: token_id for name, token_id in found.items() if name not in plain}


def spelled_by_text(model: dict[str, Any], names: Iterable[str]) -> set[str]:
    """Those of `names` that ordinary text can produce without added tokens; they control nothing.

    Some models use a plain token such as `!` for padding, which makes it a special one. `model` is
    the part of the tokenizer's JSON with this name.
    """
    merges = [
        each.split(" ") if isinstance(each, str) else each for each in model.get("merges", ())
    ]
    merged = {part for merge in merges for part in (*merge, "".join(merge))}
    return {name for name in names if len(name) == 1 or name in merged}


def rename_tokens(state: dict[str, Any], new_name_of: Mapping[str, str]) -> None:
    """Rename added tokens in a tokenizer's JSON, in place, also in the model's vocabulary."""
    for token in state["added_tokens"]:
        token["content"] = new_name_of.get(token["content"], token["content"])
    model = state["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {new_name_of.get(name, name): i for name, i in vocab.items()}
    else:
        model["vocab"] = [[new_name_of.get(name, name), score] for name, score in vocab]
    if model.get("unk_token") in new_name_of:
        model["unk_token"] = new_name_of[model["unk_token"]]
