"""The models of one server, and which of them a request is for.

With one model every request is for it, and its handler refuses another name. With several a request
names its model in the query, as `?model=NAME`, or in the body of a POST; what it does not name is
not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from aiohttp import web

from radixserve.api.body import decode_body, read_raw
from radixserve.api.context import CHOSEN, Api
from radixserve.api.openai.validate import is_among
from radixserve.api.refusals import missing, shown
from radixserve.errors import NotFound, Unavailable


class _Body(msgspec.Struct):
    """A body of any endpoint."""

    model: str | None = None


class Models:
    """The models, at least one, in the order in which they were given."""

    def __init__(self, *apis: Api) -> None:
        self._apis = apis

    def __iter__(self) -> Iterator[Api]:
        return iter(self._apis)

    @property
    def are_several(self) -> bool:
        return len(self._apis) > 1

    def check_ready(self) -> None:
        """Raises Unavailable while one of them has an `unready_reason`."""
        for api in self._apis:
            if (reason := api.unready_reason) is not None:
                whose = f" ({api.model_name})" if self.are_several else ""
                text = f"The server is not ready: {reason}{whose}."
                raise Unavailable(text, code="server_not_ready")

    def named(self, name: str) -> Api:
        """The model of this name. Raises NotFound if there is none. O(all names)."""
        for api in self._apis:
            if is_among(name, api.model_names) or name in api.engine.adapters.names:
                return api
        served = ", ".join(f"'{api.model_name}'" for api in self._apis)
        raise NotFound(
            f"The model '{shown(name)}' does not exist here; served are {served}.",
            param="model",
            code="model_not_found",
        )

    async def choose(self, request: web.Request) -> None:
        """Let `api_of` give the model that `request` names. With one model nothing is done.

        Raises:
            NotFound: there is no such model.
            BadRequest: it names none, or its body is not JSON.
        """
        if self.are_several:
            request[CHOSEN] = self.named(await _name_in(request))


async def _name_in(request: web.Request) -> str:
    """The model that `request` names. Raises BadRequest if it names none."""
    name = request.query.get("model")
    if name is None and request.method == "POST" and (raw := await read_raw(request)):
        name = decode_body(raw, _Body).model
    if name is None:
        raise missing("model")
    return name


MODELS = web.AppKey("models", Models)
