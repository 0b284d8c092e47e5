"""A row of sampling by itself, without a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radixserve.request import Sampling


@dataclass(slots=True)
class Row:
    """See `radixserve.sampling.Row`."""

    sampling: Sampling
    prompt_ids: npt.NDArray[np.int32]
    output_ids: npt.NDArray[np.int32]
    allowed: npt.NDArray[np.uint32] | None = None
