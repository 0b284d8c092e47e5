"""What goes into sampling and what comes out of it, for one sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radixserve.request import Sampling
from radixserve.step import TokenLogprob


@dataclass(slots=True)
class Row:
    """What is known of one sequence when its next token is drawn.

    The last token of the output may be one that only the device knows; its place counts, and where
    `reads_output` says that its value does, the caller sees to it that it is known.
    """

    sampling: Sampling
    prompt_ids: npt.NDArray[np.int32]
    output_ids: npt.NDArray[
        np.int32
    ]  # generated so far; its length is the position that keys the draw


@dataclass(slots=True)
class Sampled:
    """The token drawn, and what the model thought of it where the request asked."""

    token_id: int
    logprob: TokenLogprob | None
