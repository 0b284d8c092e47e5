"""The activations of an MLP against torch, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.activation import Activation, ActivationBlock, activation_kernel

DTYPES = (torch.float32, torch.bfloat16)
CONSTANTS = torch.tensor([0.8, 0.3, 0.5, -1e-6])


def xielu(x: torch.Tensor) -> torch.Tensor:
    above, below, beta, most = CONSTANTS.double()
    negative = (torch.expm1(torch.minimum(x, most)) - x) * below
    return torch.where(x > 0, above * x * x, negative) + beta * x


def clamped_swiglu(x: torch.Tensor) -> torch.Tensor:
    alpha, limit = CONSTANTS.double()[:2]
    gate = x.clamp(max=limit)
    return gate * torch.sigmoid(alpha * gate)


FUNCTIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.RELU: F.relu,
    Activation.RELU_SQUARED: lambda x: F.relu(x) ** 2,
    Activation.XIELU: xielu,
    Activation.CLAMPED_SWIGLU: clamped_swiglu,
}

pytestmark = [
    pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"]),
    pytest.mark.parametrize("function", Activation, ids=[each.name.lower() for each in Activation]),
]


def activated(x: torch.Tensor, function: Activation, is_gated: bool) -> torch.Tensor:
    out = torch.empty(len(x), x.shape[1] // (2 if is_gated else 1), dtype=x.dtype)
    counter = np.zeros(1, np.int64)
    block = ActivationBlock(x=x, out=out, constants=CONSTANTS, counter=counter, rows=len(x))
    kernel = activation_kernel(function, is_gated, x.dtype)
    threads.run(native.address(kernel), block.address, True)
    return out


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare with a float64 result: up to one rounding to the dtype of `found`."""
    step = 2**-8 if found.dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(found.double(), expected, rtol=step, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("inner", [5, 64, 100])
def test_it_is_that_of_torch_also_far_from_zero(
    inner: int, function: Activation, dtype: torch.dtype
) -> None:
    x = (torch.randn(19, inner) * 5).to(dtype)
    x[:, :5] = torch.tensor([0.0, -88.0, -1e4, 1e4, torch.nan])
    near(activated(x, function, False), FUNCTIONS[function](x.double()))


def test_it_multiplies_what_it_gates(function: Activation, dtype: torch.dtype) -> None:
    x = (torch.randn(19, 2 * 100) * 3).to(dtype)
    gate, up = x.double().split(100, -1)
    if function == Activation.CLAMPED_SWIGLU:
        limit = CONSTANTS.double()[1]
        up = up.clamp(-limit, limit) + 1
    near(activated(x, function, True), FUNCTIONS[function](gate) * up)


def test_a_row_does_not_depend_on_the_other_rows(function: Activation, dtype: torch.dtype) -> None:
    x = torch.randn(50, 2 * 100).to(dtype)
    x[7] = torch.nan
    together = activated(x, function, True)
    for row in (0, 6, 8, 49):
        assert torch.equal(activated(x[row : row + 1], function, True)[0], together[row])
