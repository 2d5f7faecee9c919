"""`TokenLinear` agrees with the matrix product in float64."""

import pytest
import torch
import torch.nn.functional as F

from model.token_linear import TokenLinear


@pytest.mark.parametrize(
    "shape", [(2, 6, 7), (1, 100, 64), (3, 5, 7), (4, 7), (2, 3, 4, 7), (0, 2, 7)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_the_product(shape, dtype):
    torch.manual_seed(0)
    layer = TokenLinear(shape[-1], 9).to(dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(*shape[:-1], 9, dtype=dtype)
    y = layer(x)
    found = torch.autograd.grad(y, (x, *layer.parameters()), cotangent)
    exact = [t.detach().double().requires_grad_() for t in (x, *layer.parameters())]
    wanted = F.linear(*exact)
    gradients = torch.autograd.grad(wanted, exact, cotangent.double())
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    )
    assert y.dtype == dtype
    assert y.is_contiguous()
    for a, b in zip((y, *found), (wanted, *gradients), strict=True):
        torch.testing.assert_close(a.double(), b, **tolerance)


def test_transposed_tokens_and_autocast():
    torch.manual_seed(0)
    layer = TokenLinear(8, 6)
    x = torch.randn(2, 8, 10).transpose(1, 2)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = layer(x), F.linear(x, layer.weight, layer.bias)
    assert y.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(y, wanted, rtol=1e-2, atol=1e-2)
