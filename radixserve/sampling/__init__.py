"""From logits to tokens, for a whole batch at once. A row gets the same bits whichever rows share
its batch.

It uses row-wise torch operations only, and every sum whose order could depend on the batch is a sum
of integers. Knows token ids and `Sampling`; knows no text, no model and no scheduler. In the life
of a request this is step 8.
"""

from radixserve.sampling.edits import leaves_no_token, reads_output
from radixserve.sampling.logprobs import PromptLogprobs
from radixserve.sampling.row import Row, Sampled
from radixserve.sampling.sampler import Samples, sample

__all__ = [
    "PromptLogprobs",
    "Row",
    "Sampled",
    "Samples",
    "leaves_no_token",
    "reads_output",
    "sample",
]
