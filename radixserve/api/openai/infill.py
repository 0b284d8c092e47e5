"""Completions with a `suffix`: the answer stands between the prompt and the suffix."""

from __future__ import annotations

from radixserve.api.context import Api
from radixserve.api.openai.prompts import Prompt, check_encoded
from radixserve.api.openai.validate import check_prompt_chars
from radixserve.api.openai.wire import CompletionBody
from radixserve.api.refusals import too_many, unsupported
from radixserve.errors import BadRequest
from radixserve.step import EngineInfo
from radixserve.text.infill import Infill, find_infill


def infill_of(api: Api, body: CompletionBody) -> Infill | None:
    """How the model wants prompt and suffix; None if `body` has no suffix.

    Raises BadRequest for a model that fills no gaps, and for fields that do not go with a suffix.
    """
    if not body.suffix:
        return None
    for name in ("echo", "truncate_prompt_tokens"):
        if getattr(body, name) not in (None, False):
            text = f"'suffix' and '{name}' exclude each other."
            raise BadRequest(text, param=name, code="invalid_value")
    infill = find_infill(api.tokenizer.control_tokens)
    if infill is None:
        raise unsupported(
            "suffix", "'suffix' with a model that has no tokens to fill in the middle"
        )
    return infill


async def infill_prompts(
    api: Api, body: CompletionBody, infill: Infill, info: EngineInfo
) -> list[Prompt]:
    """The prompts of a body with a suffix, in order, each with the tokens around both sides.

    Raises BadRequest for prompts that are no texts, and for those that cannot fit the context.
    """
    given, suffix = body.prompt, body.suffix or ""
    texts = {"prompt": given} if isinstance(given, str) else _listed(given)
    if len(texts) > api.settings.max_prompts:
        raise too_many("prompt", api.settings.max_prompts)
    add = body.add_special_tokens is not False
    start = await api.tokenizer.encode("", add_special_tokens=add)
    behind = await _side(api, suffix, suffix, info, "suffix")
    prompts = []
    for param, text in texts.items():
        ids = infill.prompt(await _side(api, text, text + suffix, info, param), behind)
        check_encoded(ids, info, param)
        prompts.append(([*start, *ids], text))
    return prompts


def _listed(given: list[int | str | list[int]]) -> dict[str, str]:
    """The texts of a list, by their places in the body."""
    if not given:
        raise BadRequest("'prompt' must not be an empty list.", param="prompt", code="empty_array")
    texts = {f"prompt[{i}]": text for i, text in enumerate(given) if isinstance(text, str)}
    if len(texts) < len(given):
        text = "With 'suffix' a prompt must be a text, because token ids may begin with any token."
        raise BadRequest(text, param="prompt", code="invalid_type")
    return texts


async def _side(api: Api, text: str, both: str, info: EngineInfo, param: str) -> list[int]:
    """The tokens of one side; `both` is the text that has to fit."""
    check_prompt_chars(len(both), info, api.settings, param)
    try:
        return await api.tokenizer.encode(text, add_special_tokens=False)
    except BadRequest as refusal:
        refusal.param = param
        raise
