"""How to sample, as a Python user writes it."""

from __future__ import annotations

from typing import Any

import msgspec


class SamplingParams(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The parameters of one request. None, as in the HTTP API, stands for the default: that of the
    settings, of the model's generation config, or of OpenAI. docs/api.md gives every range.

    At most one of `json`, `regex`, `choice` and `grammar` gives the answer a form; `json` is a
    schema, or True for any object. Values are checked when the request is made.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    cache_salt: str | None = None
    json: dict[str, Any] | str | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of a request body that say the same."""
        given = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not None and name not in _FORMS
        }
        if isinstance(self.logit_bias, dict):
            given["logit_bias"] = {str(key): value for key, value in self.logit_bias.items()}
        form = {name: getattr(self, name) for name in _FORMS if getattr(self, name) is not None}
        if form.get("json") is True:
            form = {"json_object": True, **{k: v for k, v in form.items() if k != "json"}}
        return given | ({"structured_outputs": form} if form else {})


_FORMS = ("json", "regex", "choice", "grammar")
