"""From logits to tokens, for a whole batch at once, bit for bit the same whoever shares the batch.

Row-wise torch operations only, and every sum whose order could depend on the batch is a sum of integers. Knows
token ids and `Sampling`; knows no text, no model and no scheduler. In the life of a request this is step 8.
"""

from radixserve.sampling.logprobs import prompt_logprobs
from radixserve.sampling.row import Row, Sampled
from radixserve.sampling.sampler import sample

__all__ = ["Row", "Sampled", "prompt_logprobs", "sample"]
