"""The prompts of a file that every engine is to have. A line is a body as POST /cache/warm takes
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from radixserve.api.cache.bodies import known_tenant
from radixserve.api.cache.warm import prompt_only
from radixserve.api.cache.warmup import WarmPrompt
from radixserve.api.context import Api
from radixserve.api.refusals import missing
from radixserve.body_file import FileBody
from radixserve.front.generation import Generation
from radixserve.tenants import DEFAULT


class FilePrompts:
    """The prompts of one file (`warmup.Prompts`)."""

    def __init__(self, api: Api, path: str, bodies: Sequence[FileBody]) -> None:
        self.what = f"prompts of {path}"
        self._api, self._path, self._bodies = api, path, list(bodies)

    def now(self) -> list[WarmPrompt]:
        """All lines that were not left out."""
        return [
            WarmPrompt(
                f"{self._path}, line {body.line}",
                partial(self._generation, body),
                partial(self._bodies.remove, body),
            )
            for body in self._bodies
        ]

    async def _generation(self, body: FileBody) -> Generation:
        """The generation of a body, for the tenant that it names. Raises the refusal."""
        fields = dict(body.fields)
        name, tenant = fields.pop("tenant", None), DEFAULT
        if name is not None:
            tenant = known_tenant(self._api, name)
        elif self._api.keys.has_file:
            raise missing("tenant")  # without one nobody would find what is warm
        return await prompt_only(self._api, fields, tenant)
