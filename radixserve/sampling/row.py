"""The input and the output of sampling for one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from radixserve.request import Sampling
from radixserve.step import TokenLogprob


class Row(Protocol):
    """What is known of one sequence when its next token is drawn.

    Only the device may know the last token of the output yet. Its position counts all the same;
    where `reads_output` says that an edit depends on its value, the caller must make sure that it
    is known.
    """

    @property
    def sampling(self) -> Sampling:
        """How to draw."""

    @property
    def prompt_ids(self) -> npt.NDArray[np.int32]:
        """The prompt."""

    @property
    def output_ids(self) -> npt.NDArray[np.int32]:
        """Generated so far; its length is the position that, with the seed, keys the draw."""

    @property
    def allowed(self) -> npt.NDArray[np.uint32] | None:
        """The tokens that may be drawn: uint32 [words], one bit per token, lowest first; ids beyond
        may not be drawn. None: all tokens.
        """


@dataclass(slots=True)
class Sampled:
    """The drawn token, and its log probability if the request wants it."""

    token_id: int
    logprob: TokenLogprob | None
