"""How much of a prompt the beginning of its conversation makes, found by rendering that, too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radixserve.api.context import Api
from radixserve.errors import BadRequest
from radixserve.text.conversation import Conversation


async def num_tokens_in(api: Api, beginning: Conversation, ids: Sequence[int]) -> int:
    """With how many tokens of the prompt `ids` the rendered `beginning`, which is closed, begins; 0
    if it cannot be rendered. One rendering, in a tokenizer process.
    """
    try:
        encoded = await api.tokenizer.encode_chat(beginning)
    except BadRequest:
        return 0
    n = min(len(encoded.ids), len(ids))
    differs = np.asarray(encoded.ids[:n]) != np.asarray(ids[:n])
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n
